"""Decoding at a smaller scale, and conversion of large images band by band, without a second full-size copy."""

from __future__ import annotations

import math

from PIL import Image

from simsearch.images.decoding.modes import known_top, largest_value, to_rgb

LARGE_PIXELS = 1 << 24
"""Images with more pixels are scaled down during the conversion to RGB if fewer pixels are needed."""

MIDDLE = 8
"""Aspect ratio to which a panorama of more than `LARGE_PIXELS` is cut if few pixels are needed."""


def draft(image: Image.Image, shorter_side: int | None) -> None:
    """Sets a JPEG to be decoded at the smallest scale that leaves twice the pixels needed."""
    if shorter_side is not None and image.format in {"JPEG", "MPO"}:
        width, height = image.size
        scale = 2 * shorter_side / min(width, height)
        if scale < 1:
            image.draft(None, (math.ceil(width * scale - 1e-6), math.ceil(height * scale - 1e-6)))


def scaled_rgb(image: Image.Image, shorter_side: int | None) -> Image.Image:
    """Converts a loaded image to RGB; a large one is scaled down to at least twice the pixels needed."""
    if shorter_side is None or image.width * image.height <= LARGE_PIXELS:
        return to_rgb(image, known_top(image))
    factor = min(image.size) // (2 * shorter_side)
    return _reduced(image, factor) if factor > 1 else _middle(image)


def _reduced(image: Image.Image, factor: int) -> Image.Image:
    """Scales a decoded image to 1/factor (means of squares) and converts it to RGB, without a full-size copy."""
    width, height = image.size
    rows = factor * max(1, LARGE_PIXELS // 4 // width // factor)
    result = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    top = largest_value(image)
    for start in range(0, height, rows):
        band = to_rgb(image.crop((0, start, width, min(start + rows, height))), top)
        result.paste(band.reduce(factor), (0, start // factor))
    return result


def _middle(image: Image.Image) -> Image.Image:
    """Returns the middle of a decoded panorama in RGB, at most `MIDDLE` times as long as it is high.

    No preprocessing needs more. The same length is cut off at both ends, so that the result does not depend on the way
    the image will be turned.
    """
    width, height = image.size
    across, down = (max(0, side - MIDDLE * min(width, height)) // 2 for side in (width, height))
    if not across and not down:
        return to_rgb(image, known_top(image))
    top = largest_value(image)
    return to_rgb(image.crop((across, down, width - across, height - down)), top)
