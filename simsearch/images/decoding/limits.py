"""The size of the images that are decoded."""

from __future__ import annotations

from simsearch.errors import ImageTooLargeError

LARGEST_SIDE = 1 << 23
"""Images wider or higher than this (pixels) are refused: decoders keep whole rows, and a pointer to each."""


def check_size(size: tuple[int, int], largest: int) -> None:
    """Raises ImageTooLargeError for an image that would take too much memory to decode."""
    width, height = size
    bomb = "the limit against decompression bombs"
    if width * height > largest:
        raise ImageTooLargeError(f"too large: {width}x{height} is over {largest:,} pixels, {bomb}")
    if max(width, height) > LARGEST_SIDE:
        raise ImageTooLargeError(f"too large: {width}x{height} has a side of over {LARGEST_SIDE:,} pixels, {bomb}")
