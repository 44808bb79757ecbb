"""Estimates, from an image's header alone, the peak memory needed to decode the image."""

from __future__ import annotations

import math
from typing import IO

from PIL import Image

from simsearch.images import decode
from simsearch.images.boxes import Box, least_side
from simsearch.images.decoding.scaled import SPARE

LARGE_PIXELS = 1 << 24
"""Images with more pixels are converted to RGB in bands of rows, if they are scaled down."""

BAND_PIXELS = LARGE_PIXELS // 4
"""Number of pixels in one band of rows."""


def peak_memory(data: bytes | IO[bytes], shorter_side: int | None = None, crop: bool = False) -> int:
    """Estimates the memory (bytes) needed to decode an image, convert it to RGB and turn it upright.

    shorter_side: as for `decode.decode_image`. crop: True if a part will also be cut out of the image.
    Returns 0 if the header cannot be read; decoding such a file fails early.
    """
    needed = decode.decode_memory(data, shorter_side)
    try:
        with Image.open(decode.opened_file(data)[0]) as image:
            pixels, shorter = image.width * image.height, min(image.size)
            converted = _conversion_bytes(image) + 4 * crop
            copy = image.width * image.height  # less for a JPEG that is decoded at a smaller scale
            if shorter_side is not None and image.format in {"JPEG", "MPO"}:
                scale = min(8, max(1, int(shorter / (SPARE * shorter_side))))
                copy //= (1 << (scale.bit_length() - 1)) ** 2
    except Exception:
        return 2 * needed
    finally:
        if not isinstance(data, bytes):
            data.seek(0)
    if shorter_side is not None and pixels > LARGE_PIXELS:
        scaled = shorter // (2 * shorter_side) > 1
        copy = min(copy, BAND_PIXELS if scaled else 8 * shorter**2)
    return needed + converted * copy


def scaled_side(size: tuple[int, int], box: Box, resize: int) -> int | None:
    """Returns the `shorter_side` for `decode.decode_image` if only a part of an image is needed; None for full size.

    size: the image's width and height. box: the part (x, y, width, height). resize: the pixels needed along the part's
    shorter side.
    Returns None if the image is not large, or if scaling it down would leave too few pixels.
    """
    if size[0] * size[1] <= LARGE_PIXELS:
        return None
    shorter, part = min(size), least_side(box, size)
    if part <= 0:
        return None
    side = math.ceil(resize * shorter / part)
    return side if shorter // (2 * side) > 1 else None


def image_size(data: bytes | IO[bytes]) -> tuple[int, int]:
    """Returns an image's width and height before it is turned upright; (0, 0) if the header cannot be read."""
    try:
        with Image.open(decode.opened_file(data)[0]) as image:
            return image.size
    except Exception:
        return 0, 0
    finally:
        if not isinstance(data, bytes):
            data.seek(0)


def _conversion_bytes(image: Image.Image) -> int:
    """Returns the memory (bytes per pixel) needed to convert an image to RGB and turn it upright."""
    extra = 4 * ("icc_profile" in image.info) + 4 * bool({"exif", "xmp"} & image.info.keys())
    if image.mode in {"I", "F"}:
        return 38 + extra  # float64 arrays
    if image.mode.startswith("I;16"):
        return 10 + extra
    if image.has_transparency_data:
        return 16 + extra
    return 4 + extra
