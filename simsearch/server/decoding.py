"""Two lanes for decoding pictures, each with its own threads and memory: large pictures do not delay small ones.

The header of a picture tells how much memory decoding takes. For a picture that needs too much, the small lane raises
`LargePictureError`, and `SearchService.in_lane` then uses the large lane. The large lane raises ImageTooLargeError for
a picture that needs more memory than the lane has.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from simsearch.common.machine import MemoryBudget, available_cores, release_free_memory
from simsearch.errors import ImageTooLargeError, SimsearchError
from simsearch.server.middleware import ApiError

SMALL_BYTES = 64 << 20
"""Pictures that need more bytes than this for decoding (16 megapixels in RGB) take the large lane."""

WAITING, ITEMS_WAITING = 4, 16
"""Maximum numbers of large pictures in requests, and of items, that wait or are decoded; more get status 429."""

GIVING_WAY, MOMENT = 0.25, 0.002
"""The most seconds that a step of long work waits for searches, and the seconds between two calls of `busy`."""

NICENESS = 10
"""Niceness of threads for large pictures and long work, so that ordinary searches come first (on Linux)."""


class LargePictureError(SimsearchError):
    """The error for a picture that needs more memory than the lane for small pictures gives to one picture."""


class Lane(MemoryBudget):
    """The threads and the memory for decoding pictures of one kind, small or large.

    total: bytes for all pictures at once. largest: the most bytes that one picture may need.
    niceness: how much the priority of the threads is lowered, as by `os.nice`.
    """

    def __init__(self, name: str, threads: int, total: int, largest: int, niceness: int = 0) -> None:
        super().__init__(total)
        self.largest = largest
        self.pool = ThreadPoolExecutor(threads, name, initializer=lower_priority, initargs=(niceness,))

    @contextlib.contextmanager
    def hold(self, size: int) -> Iterator[None]:
        if size > self.largest:
            raise self._refusal(size)
        with super().hold(size):
            yield

    def _refusal(self, size: int) -> SimsearchError:
        return LargePictureError(f"decoding needs {size:,} bytes")


class LargeLane(Lane):
    """The lane for large pictures. Only a few pictures may wait or be decoded at once."""

    def __init__(self, threads: int, total: int) -> None:
        super().__init__("large", threads, total, total, NICENESS)
        self._waiting = {False: 0, True: 0}

    @contextlib.contextmanager
    def hold(self, size: int) -> Iterator[None]:
        with super().hold(size):
            yield
        release_free_memory()

    @contextlib.contextmanager
    def admitted(self, of_item: bool) -> Iterator[None]:
        """Counts a picture while it waits and is decoded. Raises ApiError if there are too many.

        of_item: True for the picture of an item, False for a picture in a request. The two kinds have separate limits,
        so that pictures in requests cannot block the pictures of items.
        """
        if self._waiting[of_item] >= (ITEMS_WAITING if of_item else WAITING):
            raise ApiError(429, "too_many_requests", "too many large pictures at once", {"retry-after": "2"})
        self._waiting[of_item] += 1
        try:
            yield
        finally:
            self._waiting[of_item] -= 1

    def _refusal(self, size: int) -> SimsearchError:
        text = f"too large: decoding needs {size >> 20:,} MiB, this service has {self.total >> 20:,}"
        return ImageTooLargeError(text)


class Lanes:
    """Two lanes, one for small and one for large pictures, each with its own threads and part of the memory.

    memory: bytes for both lanes together.
    """

    def __init__(self, memory: int) -> None:
        cores = available_cores()
        small = max(memory // 4, min(SMALL_BYTES, memory // 2))
        self.small = Lane("serve", max(2, cores), small, min(SMALL_BYTES, small))
        self.large = LargeLane(max(1, cores // 2), memory - small)

    def close(self) -> None:
        """Drops the pictures that wait, and waits for the pictures that are being decoded."""
        for lane in (self.small, self.large):
            lane.pool.shutdown(wait=True, cancel_futures=True)


class EitherLane(MemoryBudget):
    """A memory budget for work that decodes small and large pictures outside the lanes' own threads.

    A small picture takes memory of the small lane, a large picture of the large lane.
    """

    def __init__(self, lanes: Lanes) -> None:
        super().__init__(lanes.large.total)
        self._lanes = lanes

    @contextlib.contextmanager
    def hold(self, size: int) -> Iterator[None]:
        with (self._lanes.small if size <= self._lanes.small.largest else self._lanes.large).hold(size):
            yield


def give_way(busy: Callable[[], bool]) -> None:
    """Waits while searches are being answered, but at most `GIVING_WAY` seconds, so that long work still advances.

    busy: returns True while searches are being answered.
    A lower priority of this thread would not be enough: matrix products run in other threads, with the priority of the
    process.
    """
    end = time.monotonic() + GIVING_WAY
    while busy() and time.monotonic() < end:
        time.sleep(MOMENT)


def lower_priority(niceness: int) -> None:
    """Lowers the priority of only the current thread on Linux; does nothing on other systems."""
    if niceness and hasattr(os, "setpriority") and os.uname().sysname == "Linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
