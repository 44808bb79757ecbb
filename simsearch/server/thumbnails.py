"""The image files of items, and small JPEGs of them, over HTTP; by item id only."""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict

from simsearch.engine import Engine
from simsearch.images import decode
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


def file(served: ReloadableIndex, number: int) -> tuple[bytes, str | None]:
    """An item's file, and its media type if it is an image that browsers show. Raises ImageError."""

    def read(engine: Engine) -> bytes:
        return engine.read(number)

    data = served.use(read)
    return data, _kind(data)


def digest(served: ReloadableIndex, number: int) -> bytes:
    """The SHA-256 of an item's file, as indexed."""
    return served.use(lambda engine: engine.item(number).digest)


def spread(served: ReloadableIndex, count: int) -> list[int]:
    """The ids of some items, spread evenly over the index: something to begin with."""

    def read(engine: Engine) -> list[int]:
        with engine.store.reading() as reader:
            found: list[int] = reader.spread(count)
            return found

    return served.use(read)


def _kind(data: bytes) -> str | None:
    from PIL import Image

    if not decode.looks_like_image(data[:32]):
        return None
    try:
        with Image.open(io.BytesIO(data)) as image:
            return _FORMATS.get(image.format or "")
    except Exception:  # hostile bytes make Pillow raise nearly anything
        return None


class Thumbnails:
    """Small JPEGs, the last ones asked for kept in memory. Safe for several threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[bytes, int], bytes] = OrderedDict()
        self._held = 0
        self._lock = threading.Lock()

    def get(self, served: ReloadableIndex, number: int, digest: bytes, size: int) -> bytes:
        """The item's image within `size` x `size` pixels. Raises ImageError if it cannot be read any more."""
        with self._lock:
            if (known := self._kept.get((digest, size))) is not None:
                self._kept.move_to_end((digest, size))
                return known
        data = served.use(lambda engine: engine.read(number))
        image = decode.decode_image(data, size).image
        image.thumbnail((size, size))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85)
        made = buffer.getvalue()
        if hashlib.sha256(data).digest() == digest:  # a file that changed since is not the item's
            self._keep(digest, size, made)
        return made

    def _keep(self, digest: bytes, size: int, made: bytes) -> None:
        with self._lock:
            if (digest, size) not in self._kept:
                self._kept[digest, size] = made
                self._held += len(made)
            while self._held > CACHE:
                self._held -= len(self._kept.popitem(last=False)[1])
