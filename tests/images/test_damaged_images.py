"""Damaged and hostile files are refused with a reason."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from simsearch.errors import ImageError
from simsearch.images import decode
from tests.helpers.encoded import encoded, error, picture, png

# In a program that does not turn warnings into errors, what Pillow only warns of is no reason to give a file up.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


# -- what is no picture


def test_empty_file_is_refused() -> None:
    assert error(b"") == "empty file"


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        b"hello, world\n" * 40,
        b"<!doctype html><html></html>",
        b"%PDF-1.7\n",
        b"PK\x03\x04" + bytes(60),
        bytes(4096),
    ],
    ids=["nul", "text", "html", "pdf", "zip", "zeros"],
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    assert error(data) == "not an image, or of an unknown format"


def test_programs_are_not_run_to_draw_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> None:
        raise AssertionError("Ghostscript was asked")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", run)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"
    with Image.open(io.BytesIO(eps)) as opened:
        assert opened.format == "EPS"
    assert error(eps) == "an EPS drawing, which is not read"


@pytest.mark.parametrize("kind", ["png", "bmp"])
def test_decompression_bomb_is_refused_by_header(kind: str) -> None:
    data = png(30_000, 30_000, 8, 2, b"")
    if kind == "bmp":
        data = b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0)
    assert error(data).startswith("too large: ")
    assert f"{decode.LARGEST_PIXELS:,}" in error(data)


def test_limit_holds_without_pillows_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert error(png(30_000, 30_000, 8, 2, b"")).startswith("too large: 30000x30000 ")


@pytest.mark.parametrize("size", [(1, 8_388_609), (8_388_609, 1)])
def test_lines_needing_much_memory_are_refused(size: tuple[int, int]) -> None:
    """Pillow keeps a pointer for each row, and PNG two rows: a file of 300 kB would take gigabytes."""
    assert error(png(*size, 8, 0, b"")).startswith(f"too large: {size[0]}x{size[1]} has a side of over 8,388,608 ")


def test_panorama_within_the_limit_is_no_bomb() -> None:
    assert decode.decode_image(encoded(Image.new("L", (40_000, 2)), "PNG")).width == 40_000


@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "QOI", "ICO", "TGA", "PCX", "MPO"]
)
def test_truncated_file_is_refused_or_decoded(kind: str) -> None:
    data = encoded(picture(), kind)
    for part in np.linspace(1, len(data) - 1, 24, dtype=int).tolist():
        try:
            decoded = decode.decode_image(data[:part])
        except ImageError as refused:
            assert str(refused).strip()
            assert "\n" not in str(refused)
        else:
            assert decoded.image.mode == "RGB"
    assert error(data[: len(data) // 2])


def test_reason_explains_truncated_file() -> None:
    assert "truncated" in error(encoded(picture(480, 320), "JPEG")[:-200])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF"])
def test_flipped_bytes_are_refused_or_decoded(kind: str) -> None:
    data = encoded(picture(), kind)
    generator = np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(data)
        for place in generator.integers(0, len(data), 4):
            damaged[place] = generator.integers(0, 256)
        try:
            assert decode.decode_image(bytes(damaged), 16).image.mode == "RGB"
        except ImageError as refused:
            assert str(refused).strip()
            assert "\n" not in str(refused)


def test_running_out_of_memory_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    assert error(encoded(picture(), "PNG")) == "too large for the memory at hand"
