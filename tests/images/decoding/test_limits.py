"""Files of very many parts, which would take Pillow minutes and gigabytes."""

from __future__ import annotations

import io
import struct
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image

from simsearch.errors import ImageError
from simsearch.images import decode, memory
from simsearch.images.decoding.limits import PARTS


def encoded(kind: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(out, kind)
    return out.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def filled(kind: str, count: int) -> bytes:
    """Returns a picture with that number of parts that mean nothing."""
    data = encoded("GIF" if kind == "GIF" else kind)
    if kind == "JPEG":
        return data[:2] + b"\xff\xfe\0\2" * count + data[2:]
    if kind == "PNG":
        return data[:33] + chunk(b"tEXt", b"a\0b") * count + data[33:]
    palette = 13 + 3 * (2 << (data[10] & 7))
    return data[:palette] + b"\x21\xfe\x01a\0" * count + data[palette:]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF"])
def test_far_too_many_parts_are_refused(kind: str) -> None:
    many, some = filled(kind, PARTS), filled(kind, 5000)
    with pytest.raises(ImageError, match="too many parts"):
        decode.decode_image(many)
    assert memory.peak_memory(many) == 0
    assert memory.image_size(many) == (0, 0)
    assert decode.decode_image(some).image.size == (20, 20)
    assert memory.peak_memory(some) > 0


def test_large_file_of_zeros_on_disk(tmp_path: Path) -> None:
    place = tmp_path / "x.jpg"
    with open(place, "wb") as file:
        file.write(b"\xff\xd8\xff\xe0")
        file.truncate(200 << 20)
    with open(place, "rb") as file:
        start = time.monotonic()
        with pytest.raises(ImageError, match="too many parts"):
            decode.decode_image(file)
        assert memory.peak_memory(file) == 0
        assert time.monotonic() - start < 8  # 200 million calls of `read` take 17 seconds
    place.write_bytes(encoded("TIFF"))
    with open(place, "rb") as file:
        assert decode.decode_image(file).image.size == (20, 20)


def tiff(strips: int, kind: int, order: str) -> bytes:
    """Returns a grey TIFF with as many strips as rows, all of them the first eight bytes. kind: 42, or 43 for BigTIFF."""
    size, whole, head = (20, "Q", 16) if kind == 43 else (12, "I", 8)
    after = head + struct.calcsize("<" + whole) + 9 * size + 8
    tags = [(256, 1, 8), (257, 1, strips), (258, 1, 8), (259, 1, 1), (262, 1, 1), (277, 1, 1), (278, 1, 1)]
    tags += [(273, strips, after), (279, strips, after + 4 * strips)]
    entries = b""
    for tag, count, value in sorted(tags):
        entries += struct.pack(f"{order}HH{whole}{whole}", tag, 16 if kind == 43 and count == 1 else 4, count, value)
    start = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", kind)
    start += struct.pack(order + "HHQ", 8, 0, head) if kind == 43 else struct.pack(order + "I", head)
    directory = struct.pack(order + ("Q" if kind == 43 else "H"), 9) + entries + bytes(8)
    return (
        (start + directory).ljust(after, b"\0")
        + struct.pack(f"{order}I", 0) * strips
        + struct.pack(f"{order}I", 8) * strips
    )


@pytest.mark.parametrize(("kind", "order"), [(42, "<"), (42, ">"), (43, "<")])
def test_tiff_of_too_many_strips(kind: int, order: str) -> None:
    with pytest.raises(ImageError, match="too many parts"):
        decode.decode_image(tiff(200_000, kind, order))
    assert memory.peak_memory(tiff(200_000, kind, order)) == 0
    assert decode.decode_image(tiff(300, kind, order)).image.size == (8, 300)


def test_header_that_is_cut_off() -> None:
    for size in (4, 7, 8, 9, 12, 20):
        with pytest.raises(ImageError):
            decode.decode_image(tiff(9, 42, "<")[:size])
