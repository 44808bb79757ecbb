"""Two lanes for decoding: small pictures, and large ones that must not hold them up; each with a share of the memory.

The header says how much memory a picture needs. A lane that has less refuses it: the small lane with
`LargePictureError`, upon which the handler takes the large one; the large lane as too large for this service.
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
"""Pictures that need more memory for decoding (16 megapixels in RGB) take the large lane."""

WAITING, ITEMS_WAITING = 4, 16
"""Large pictures of requests, and those of items, that may be decoded or wait for it; others get status 429."""

GIVING_WAY, MOMENT = 0.25, 0.002
"""The longest time, in seconds, that a step of long work waits for searches, and how often it looks."""

NICENESS = 10
"""Of the threads that decode large pictures, so that ordinary searches come first (on Linux)."""


class LargePictureError(SimsearchError):
    """A picture that the small lane does not decode."""


class Lane(MemoryBudget):
    """A lane's threads and memory. largest: the most bytes that one picture may need."""

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
    """The lane of the large pictures; counts those that wait."""

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

        of_item: True for an item's picture, which pictures that are sent must not keep out.
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
    """The two lanes. memory: bytes for both."""

    def __init__(self, memory: int) -> None:
        cores = available_cores()
        small = max(memory // 4, min(SMALL_BYTES, memory // 2))
        self.small = Lane("serve", max(2, cores), small, min(SMALL_BYTES, small))
        self.large = LargeLane(max(1, cores // 2), memory - small)

    def close(self) -> None:
        """Drops what has not started, and waits for the rest."""
        for lane in (self.small, self.large):
            lane.pool.shutdown(wait=True, cancel_futures=True)


class EitherLane(MemoryBudget):
    """The memory of both lanes, for long work in a thread of its own: each picture takes the lane of its size."""

    def __init__(self, lanes: Lanes) -> None:
        super().__init__(lanes.large.total)
        self._lanes = lanes

    @contextlib.contextmanager
    def hold(self, size: int) -> Iterator[None]:
        with (self._lanes.small if size <= self._lanes.small.largest else self._lanes.large).hold(size):
            yield


def give_way(busy: Callable[[], bool]) -> None:
    """Waits while searches are being answered, at most for `GIVING_WAY`, so that long work goes on in the end.

    A lower priority is not enough: the threads of a matrix product have that of the process.
    """
    end = time.monotonic() + GIVING_WAY
    while busy() and time.monotonic() < end:
        time.sleep(MOMENT)


def lower_priority(niceness: int) -> None:
    """Lowers the priority of the current thread alone, which Linux can do."""
    if niceness and hasattr(os, "setpriority") and os.uname().sysname == "Linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
