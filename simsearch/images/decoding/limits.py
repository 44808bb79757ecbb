"""Limits of the size of images, and of the number of parts that a file consists of."""

from __future__ import annotations

import io

from simsearch.errors import ImageError, ImageTooLargeError

LARGEST_SIDE = 1 << 23
"""Images wider or higher than this (pixels) are refused: decoders keep whole rows, and a pointer to each."""

PARTS, PART_BYTES = 100_000, 256
"""A file in memory may be read in at most PARTS steps, plus one for each PART_BYTES bytes.

A file that consists of markers or chunks of a few bytes would take Pillow a minute, in which nothing else runs.
Ordinary files take 50 steps.
"""


UNCOUNTED = 1 << 18
"""Steps are not counted for smaller files (bytes), which cannot have too many parts."""


def file_in_memory(data: bytes) -> io.BytesIO:
    """Returns an open file with this content, which raises ImageError if read in too many steps."""
    return io.BytesIO(data) if len(data) < UNCOUNTED else _CountedFile(data)


class _CountedFile(io.BytesIO):
    """A file in memory that raises ImageError if read in too many steps."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left = PARTS + len(data) // PART_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise ImageError("it consists of too many parts")
        return super().read(size)


def check_size(size: tuple[int, int], largest: int) -> None:
    """Raises ImageTooLargeError for an image that would take too much memory to decode."""
    width, height = size
    bomb = "the limit against decompression bombs"
    if width * height > largest:
        raise ImageTooLargeError(f"too large: {width}x{height} is over {largest:,} pixels, {bomb}")
    if max(width, height) > LARGEST_SIDE:
        raise ImageTooLargeError(f"too large: {width}x{height} has a side of over {LARGEST_SIDE:,} pixels, {bomb}")
