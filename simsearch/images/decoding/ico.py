"""Reads the mask of icons whose alpha channel is unused, as browsers do."""

from __future__ import annotations

import contextlib
import struct
from typing import IO

import numpy as np
from PIL import Image


def with_mask(image: Image.Image, file: IO[bytes]) -> Image.Image:
    """Returns a loaded icon, with the alpha of its mask (one bit per pixel) if its own alpha is 0 everywhere.

    A mask that hides all pixels is ignored.
    """
    if image.mode != "RGBA" or image.getchannel("A").getextrema() != (0, 0):
        return image
    with contextlib.suppress(struct.error, ValueError, OSError):
        file.seek(4)
        (count,) = struct.unpack("<H", file.read(2))
        for _ in range(count):
            entry = file.read(16)
            if (entry[0] or 256, entry[1] or 256) != image.size:
                continue
            place, (start,) = file.tell(), struct.unpack("<I", entry[12:])
            file.seek(start)
            header = struct.unpack("<IiiHH", file.read(16))
            if header[0] == 40 and header[4] == 32 and (header[1], header[2] // 2) == image.size:
                mask = _mask(file, start + 40, image.size)
                if not mask.all():
                    image.putalpha(Image.fromarray(np.where(mask, 0, 255).astype(np.uint8)))
                return image
            file.seek(place)
    return image


def _mask(file: IO[bytes], start: int, size: tuple[int, int]) -> np.ndarray:
    """Reads an icon's mask, (H, W); 1 is transparent. start: offset of the 32-bit pixels; the mask comes after them."""
    width, height = size
    row = (width + 31) // 32 * 4
    file.seek(start + 4 * width * height)
    data = np.frombuffer(file.read(row * height), np.uint8).reshape(height, row)
    return np.unpackbits(data, axis=1)[::-1, :width]
