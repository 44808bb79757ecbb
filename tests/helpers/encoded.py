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


def chunk(name: bytes, data: bytes, damaged: bool = False) -> bytes:
    """A chunk of a PNG; a damaged one has a wrong checksum."""
    checksum = zlib.crc32(name + data) ^ (0xDEADBEEF if damaged else 0)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)


def png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A hand-made PNG of a given bit depth and colour type, which Pillow itself cannot write. extra: more chunks."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(values: NDArray[Any], photometric: int, order: str = "<", planes: bool = False, **tags: Any) -> bytes:
    """A hand-made uncompressed TIFF of an (H, W) or (H, W, S) array.

    planes: each channel apart. tags: more tags as t258=(12,), of 16 bits; `data` in place of the array's bytes.
    """
    stacked = values if values.ndim == 3 else values[..., None]
    height, width, samples = stacked.shape
    parts = [stacked[..., number] for number in range(samples)] if planes else [stacked]
    data = tags.pop("data", None)
    strips = [data] if data else [part.astype(part.dtype.newbyteorder(order)).tobytes() for part in parts]
    form = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    fields: dict[int, tuple[int, ...]] = {
        256: (width,),
        257: (height,),
        258: (8 * values.itemsize,) * samples,
        259: (1,),
        262: (photometric,),
        277: (samples,),
        278: (height,),
        279: tuple(len(strip) for strip in strips),
        284: (2 if planes else 1,),
        339: (form,) * samples,
        **{int(name[1:]): value for name, value in tags.items()},
    }
    fields[273] = (0,) * len(strips)
    end = 8 + 2 + 12 * len(fields) + 4
    place = end + sum(4 * len(value) for value in fields.values() if len(value) > 1)
    fields[273] = tuple(place + sum(fields[279][:number]) for number in range(len(strips)))
    entries, beyond = b"", b""
    for tag, value in sorted(fields.items()):
        wide = tag in {273, 279}
        packed = struct.pack(f"{order}{len(value)}{'I' if wide else 'H'}", *value)
        if len(packed) > 4:
            packed, beyond = struct.pack(f"{order}I", end + len(beyond)), beyond + packed
        entries += struct.pack(f"{order}HHI", tag, 4 if wide else 3, len(value)) + packed.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(fields))
    return (head + entries + bytes(4) + beyond).ljust(place, b"\0") + b"".join(strips)


def numbers(image: Image.Image) -> NDArray[np.int64]:
    return np.asarray(image, np.int64)


def error(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decode.decode_image(data)
    return str(caught.value)


def assert_close(image: Image.Image, expected: Image.Image, tolerance: float) -> None:
    assert (image.mode, image.size) == ("RGB", expected.size)
    assert np.abs(numbers(image) - numbers(expected)).mean() <= tolerance
