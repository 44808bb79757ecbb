"""Estimates of the memory that decoding an image needs at its peak, from its header alone."""

from __future__ import annotations

import math
from typing import IO

from PIL import Image

from simsearch.images import decode

LARGE_PIXELS = 1 << 24
"""Images with more pixels are converted to RGB band by band, if they are scaled down."""

BAND_PIXELS = LARGE_PIXELS // 4
"""Pixels of one band."""


def peak_memory(data: bytes | IO[bytes], shorter_side: int | None = None, crop: bool = False) -> int:
    """Estimates the bytes needed to decode an image, convert it to RGB, turn it and, with `crop`, cut a part out.

    shorter_side: as for `decode.decode_image`. Returns 0 if the header cannot be read: decoding will fail early too.
    """
    needed = decode.decode_memory(data, shorter_side)
    try:
        with Image.open(decode.opened_file(data)[0]) as image:
            pixels, shorter = image.width * image.height, min(image.size)
            converted = _conversion_bytes(image) + 4 * crop
            copy = image.width * image.height  # a JPEG is decoded at a smaller scale
            if shorter_side is not None and image.format in {"JPEG", "MPO"}:
                scale = min(8, max(1, shorter // (2 * shorter_side)))
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


def scaled_side(size: tuple[int, int], box: tuple[int, int, int, int], resize: int) -> int | None:
    """Returns the `shorter_side` for decoding a large image of which only a part is needed.

    size: width and height. box: the part, (x, y, width, height). resize: pixels needed of the part's shorter side.
    None if the image is not large, or has no pixels to spare.
    """
    if size[0] * size[1] <= LARGE_PIXELS or len(box) != 4:
        return None
    shorter, part = min(size), min(box[2:])
    if not isinstance(part, int) or part <= 0:
        return None
    side = math.ceil(resize * shorter / part)
    return side if shorter // (2 * side) > 1 else None


def image_size(data: bytes | IO[bytes]) -> tuple[int, int]:
    """Returns width and height as stored; (0, 0) if the header cannot be read."""
    try:
        with Image.open(decode.opened_file(data)[0]) as image:
            return image.size
    except Exception:
        return 0, 0
    finally:
        if not isinstance(data, bytes):
            data.seek(0)


def _conversion_bytes(image: Image.Image) -> int:
    """Returns the bytes per pixel that converting an image to RGB (`to_rgb`) and turning it take together."""
    extra = 4 * ("icc_profile" in image.info) + 4 * bool({"exif", "xmp"} & image.info.keys())
    if image.mode in {"I", "F"}:
        return 38 + extra  # float64 arrays
    if image.mode.startswith("I;16"):
        return 10 + extra
    if image.has_transparency_data:
        return 16 + extra
    return 4 + extra
