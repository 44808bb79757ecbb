"""Limits on the size of images, and on the number of parts that a file consists of."""

from __future__ import annotations

import io
from typing import IO, Any, cast

from simsearch.errors import ImageError, ImageTooLargeError

LARGEST_SIDE = 1 << 23
"""Images wider or higher than this (pixels) are refused, because decoders hold whole rows and a pointer to each row."""

PARTS, PART_BYTES = 100_000, 256
"""A file may be read by at most PARTS calls of `read`, plus one for each PART_BYTES bytes.

A file that consists of markers or chunks of a few bytes would take Pillow a minute, in which no other thread runs.
Ordinary files take 50 calls.
"""


UNCOUNTED = 1 << 18
"""Calls of `read` are not counted for files of fewer bytes, which cannot have too many parts."""


def file_in_memory(data: bytes) -> IO[bytes]:
    """Returns an open file with this content, whose `read` raises ImageError after too many calls (see `PARTS`)."""
    file = io.BytesIO(data)
    return file if len(data) < UNCOUNTED else counted(file)


def counted(file: IO[bytes]) -> IO[bytes]:
    """Returns an open file, wrapped so that `read` raises ImageError after too many calls (see `PARTS`)."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return cast("IO[bytes]", _CountedReads(file, size))


class _CountedReads:
    """An open file whose `read` raises ImageError after too many calls."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, PARTS + size // PART_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise ImageError("the file consists of too many parts")
        return self._file.read(-1 if size is None else size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def check_size(size: tuple[int, int], largest: int) -> None:
    """Raises ImageError for an image without pixels.

    Raises ImageTooLargeError for an image of more than `largest` pixels, or with a side over `LARGEST_SIDE`.
    """
    width, height = size
    if min(size) <= 0:
        raise ImageError(f"an image of {width}x{height} holds no pixels")
    bomb = "the limit against decompression bombs"
    if width * height > largest:
        raise ImageTooLargeError(f"too large: {width}x{height} is over {largest:,} pixels, {bomb}")
    if max(width, height) > LARGEST_SIDE:
        raise ImageTooLargeError(f"too large: {width}x{height} has a side of over {LARGEST_SIDE:,} pixels, {bomb}")
