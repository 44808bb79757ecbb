"""Remote images are read ahead, in order and within memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from simsearch.errors import ImageError
from simsearch.images.decode import LARGE_BYTES
from simsearch.images.sources.base import Listing, Source
from simsearch.images.sources.remote.store import REQUESTS
from simsearch.indexing import prefetch


class Slow(Source):
    """Takes a moment for each read, and notes how many are under way and how many bytes are in memory."""

    kind, remote = "slow", True

    def __init__(self, size: int = 100) -> None:
        super().__init__("slow")
        self.size, self.reads, self.now, self.most = size, list[str](), 0, 0
        self.lock = threading.Lock()

    def listing(self, exclude: Sequence[str] = ()) -> Listing:
        return Listing()

    def read(self, path: str) -> bytes:
        with self.lock:
            self.reads.append(path)
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.01)
        with self.lock:
            self.now -= 1
        if path == "3":
            raise ImageError("no such object")
        return path.encode() * self.size


def images(source: Source, count: int, size: int = 100) -> list[tuple[int, Source, str, int, int]]:
    return [(number, source, str(number), size, 1) for number in range(count)]


def test_order_and_errors() -> None:
    source, found = Slow(), list[Any]()
    for task in prefetch.tasks(images(source, 200)):
        try:
            found.append((task.key, task.read()))
        except ImageError:
            found.append((task.key, None))
    assert found == [(n, None if n == 3 else str(n).encode() * 100) for n in range(200)]
    assert sorted(source.reads, key=int) == [str(n) for n in range(200)]
    assert 8 < source.most <= REQUESTS


def test_what_is_held_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images beyond the limit are read when their turn comes, and nothing waits for ever."""
    monkeypatch.setattr(prefetch, "AHEAD_BYTES", 1000)
    source = Slow()
    tasks = prefetch.tasks(images(source, 100))
    first = next(tasks)
    time.sleep(0.2)
    assert len(source.reads) == 10  # 1,000 bytes
    assert first.read() == b"0" * 100
    rest = list(tasks)
    assert [len(bytes(task.read())) for task in rest if task.key != 3]  # type: ignore[arg-type]
    assert len(source.reads) == len(set(source.reads)) == 100


def test_large_and_local_images_are_not_read_ahead() -> None:
    source = Slow()
    list(prefetch.tasks(images(source, 10, LARGE_BYTES + 1)))
    source.remote = False
    list(prefetch.tasks(images(source, 10)))
    time.sleep(0.05)
    assert source.reads == []


def test_interrupted() -> None:
    """Reads that have not begun are dropped."""
    source = Slow()
    tasks = prefetch.tasks(images(source, 1000))
    next(tasks)
    tasks.close()
    time.sleep(0.1)
    begun = len(source.reads)
    time.sleep(0.1)
    assert begun == len(source.reads) <= prefetch.AHEAD_IMAGES + 1  # one is given out, and the others are ahead of it
