"""Opens the image files of items and makes thumbnails of them; clients can name a file only by the item's id."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from typing import IO

from PIL import Image

from simsearch.common.machine import MemoryBudget
from simsearch.engine import Engine
from simsearch.images import decode, memory
from simsearch.server.reloading import ReloadableIndex

CACHE = 32 << 20
"""Bytes of thumbnails kept in memory."""

_FORMATS = {
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "PNG": "image/png",
    "GIF": "image/gif",
    "WEBP": "image/webp",
    "AVIF": "image/avif",
    "BMP": "image/bmp",
}


def file(served: ReloadableIndex, number: int, budget: MemoryBudget) -> tuple[IO[bytes], str | None]:
    """Returns an item's open file, and its media type or None if browsers cannot show the file. Raises ImageError.

    number: the item's id. budget: memory for decoding.
    """
    opened = served.run(lambda engine: engine.open_image(number, budget=budget))
    try:
        return opened, _kind(opened)
    finally:
        opened.seek(0)


def digest(served: ReloadableIndex, number: int) -> bytes:
    """Returns the SHA-256 that an item's file had when it was indexed. number: the item's id."""
    return served.run(lambda engine: engine.item(number).digest)


def spread(served: ReloadableIndex, count: int) -> list[int]:
    """Returns the ids of `count` items, spread evenly over the index."""

    def read(engine: Engine) -> list[int]:
        with engine.reading() as reader:
            found: list[int] = reader.sample_ids(count)
            return found

    return served.run(read)


def _kind(file: IO[bytes]) -> str | None:
    try:
        with Image.open(file, formats=[name for name in _FORMATS if name != "MPO"]) as image:  # opened as JPEG
            return _FORMATS.get(image.format or "")
    except Exception:  # hostile bytes make Pillow raise nearly anything
        return None


class Thumbnails:
    """Makes small JPEGs, and keeps the most recently used ones in memory. Safe for several threads."""

    def __init__(self) -> None:
        self._cache: OrderedDict[tuple[bytes, int], bytes] = OrderedDict()
        self._cached_bytes = 0
        self._lock = threading.Lock()

    def get(self, served: ReloadableIndex, number: int, digest: bytes, size: int, budget: MemoryBudget) -> bytes:
        """Returns the item's image as JPEG, within `size` x `size` pixels. Raises ImageError if it cannot be read.

        number: the item's id. digest: the SHA-256 of the item's file; thumbnails are kept under digest and size.
        budget: memory for decoding.
        """
        with self._lock:
            if (known := self._cache.get((digest, size))) is not None:
                self._cache.move_to_end((digest, size))
                return known
        with (
            served.run(lambda engine: engine.open_image(number, decodes=False)) as file,
            budget.hold(memory.peak_memory(file, size)),
        ):
            image = decode.decode_image(file, size).image
        image.thumbnail((size, size))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        made = buffer.getvalue()
        self._put(digest, size, made)
        return made

    def _put(self, digest: bytes, size: int, made: bytes) -> None:
        with self._lock:
            if (digest, size) not in self._cache:
                self._cache[digest, size] = made
                self._cached_bytes += len(made)
            while self._cached_bytes > CACHE:
                self._cached_bytes -= len(self._cache.popitem(last=False)[1])
