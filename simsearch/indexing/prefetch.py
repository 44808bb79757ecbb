"""Reads ahead images that are stored on other machines, several at once, to hide the latency of the network.

The order of the images does not change. Memory is bounded: the images read in advance have at most `AHEAD_BYTES`
together. An image that would exceed this limit is read only when its task is run.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, TYPE_CHECKING, TypeVar

from simsearch.images.decode import LARGE_BYTES
from simsearch.images.sources.remote.kept import KeptObjects
from simsearch.images.sources.remote.store import REQUESTS
from simsearch.indexing.extract import Task
from simsearch.indexing.load import reading

if TYPE_CHECKING:
    from simsearch.images.sources.base import Source

T = TypeVar("T")

AHEAD_IMAGES = 2 * REQUESTS
"""Maximum number of images on other machines that are requested before the task of the first one is yielded."""

AHEAD_BYTES = 128 << 20
"""Maximum size in bytes of all images that are requested in advance and whose tasks have not run yet."""

UNKNOWN_BYTES = 1 << 20
"""Size in bytes assumed for an image if the server does not report it."""


def tasks(
    images: Iterable[tuple[T, Source, str, int, int]], kept: KeptObjects | None = None
) -> Generator[Task[T], None, None]:
    """Yields a `Task` for each image, in order. Reads ahead images that are stored on other machines.

    images: (key, source, path, size in bytes, stamp) of each image; for stamps, see `sources.base.Entry`.
    kept: the files from other machines that an interrupted build has read. They are not read again; files that are read
    now are added to `kept`.
    """
    waiting: deque[Task[T]] = deque()
    held = _Held(AHEAD_BYTES)
    pool: ThreadPoolExecutor | None = None
    complete = False
    try:
        for key, source, path, size, stamp in images:
            read = reading(source, path, size)
            if source.remote and size <= LARGE_BYTES:
                if kept is not None:
                    read = functools.partial(kept.read, (source.root, path, size, stamp), read)
                pool = pool or ThreadPoolExecutor(REQUESTS, "remote")
                read = _ReadAhead(read, size or UNKNOWN_BYTES, pool, held)
            waiting.append(Task(read, key))
            while len(waiting) > (AHEAD_IMAGES if source.remote else 0):
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
        complete = True
    finally:
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=not complete)


class _Held:
    """Counts the bytes of images read in advance, up to a limit."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        """Reserves `size` bytes; returns False if the limit would be exceeded."""
        with self._lock:
            if size > self._free:
                return False
            self._free -= size
            return True

    def give_back(self, size: int) -> None:
        with self._lock:
            self._free += size


class _ReadAhead:
    """A callable that returns the content of an image.

    If memory permits, a thread of the pool reads the image at once. Otherwise the image is read when the object is
    called.
    """

    def __init__(self, read: Callable[[], bytes | IO[bytes]], size: int, pool: ThreadPoolExecutor, held: _Held) -> None:
        self._read, self._size, self._held = read, size, held
        self._future: Future[bytes | IO[bytes]] | None = pool.submit(read) if held.take(size) else None

    def __call__(self) -> bytes | IO[bytes]:
        future, self._future = self._future, None
        if future is None:
            return self._read()
        try:
            return future.result()
        finally:
            self._held.give_back(self._size)
