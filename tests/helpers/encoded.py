"""Encoded images for tests of decoding."""

from __future__ import annotations

import io
import struct
import zlib
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from simsearch.errors import ImageError
from simsearch.images import decode

WIDTH, HEIGHT = 48, 32
WHITE, BLACK, RED = (255, 255, 255), (0, 0, 0), (255, 0, 0)
needs_heif = pytest.mark.skipif(find_spec("pillow_heif") is None, reason="pillow_heif is not installed")


def picture(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A smooth picture without any symmetry: red grows to the right, green downwards, blue has one bright corner."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return Image.fromarray((np.stack([x, y, (x * y) ** 2], -1) * 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A hand-made PNG of a given bit depth and colour type, which Pillow itself cannot write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def numbers(image: Image.Image) -> NDArray[np.int64]:
    return np.asarray(image, np.int64)


def error(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decode.decode_image(data)
    return str(caught.value)


def assert_close(image: Image.Image, expected: Image.Image, tolerance: float) -> None:
    assert (image.mode, image.size) == ("RGB", expected.size)
    assert np.abs(numbers(image) - numbers(expected)).mean() <= tolerance
