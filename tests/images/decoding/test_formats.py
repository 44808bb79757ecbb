"""Formats that need an extra, or that are never read, are told apart and named."""

from __future__ import annotations

import io
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from simsearch.errors import ImageError
from simsearch.images import decode
from simsearch.images.decoding import formats, jxl
from tests.helpers.encoded import assert_close, encoded, error, numbers, picture

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:pillow_jxl"),
]
needs_jxl = pytest.mark.skipif(find_spec("pillow_jxl") is None, reason="pillow-jxl-plugin is not installed")
needs_raw = pytest.mark.skipif(
    None in (find_spec("rawpy"), find_spec("tifffile")), reason="rawpy or tifffile is not installed"
)

HEADS = {
    "JPEG XL": b"\xff\x0a\x00\x00aaaa",
    "Canon CR3": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom",
    "Fujifilm RAF": b"FUJIFILMCCD-RAW 0201",
    "Panasonic RW2": b"IIU\0" + bytes(20),
    "Olympus ORF": b"IIRO" + bytes(20),
    "Sigma X3F": b"FOVb" + bytes(20),
}


@pytest.mark.parametrize("name", HEADS)
def test_missing_extras_are_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rawpy", None)
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    assert decode.looks_like_image(HEADS[name])
    extra = "jxl" if name == "JPEG XL" else "raw"
    with pytest.raises(ImageError, match=rf"{name}\)? needs the \[{extra}\] extra: .*\[{extra}\]'") as caught:
        decode.decode_image(HEADS[name] + bytes(40))
    assert caught.value.hint is not None


@pytest.mark.parametrize(
    ("path", "head", "kind"),
    [
        ("a/b.MP4", b"", "video"),
        ("b.svg", b"", "SVG drawing"),
        ("b.emf", b"", "Windows metafile"),
        ("b", b"\0\0\0\x18ftypmp42", "video"),
        ("b", b"\x1a\x45\xdf\xa3", "video"),
        ("b", b"RIFF\0\0\0\0AVI LIST", "video"),
        ("b", b'\xef\xbb\xbf<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG drawing"),
        ("b.txt", b"hello", None),
        ("b.jpg", b"", None),
        ("b", b"RIFF\0\0\0\0WEBPVP8 ", None),
        ("b", b"\0\0\0\x18ftypheic", None),
        ("b", b"\0\0\0\x18ftypM4A ", None),
    ],
)
def test_kinds_that_are_left_out(path: str, head: bytes, kind: str | None) -> None:
    assert formats.left_out(path, head) == kind


def test_reason_names_what_the_file_is() -> None:
    assert error(b"\0\0\0\x18ftypmp42" + bytes(40)) == "a video, which is not read"
    assert error(b"<svg/>") == "an SVG drawing, which is not read"
    for name, head in (("JPEG", b"\xff\xd8\xff"), ("WebP", b"RIFF\0\0\0\0WEBP"), ("GIF", b"GIF89a")):
        assert error(head + b"x" * 40) == f"the file is damaged: it begins like {name}, but its header cannot be read"


# -- JPEG XL


@needs_jxl
@pytest.mark.parametrize("size", [(48, 32), (64, 64), (33, 77), (256, 256), (640, 480), (1200, 3)])
def test_size_of_a_jpeg_xl(size: tuple[int, int]) -> None:
    import pillow_jxl  # noqa: F401

    for options in ({}, {"use_container": True}):
        assert jxl.size(io.BytesIO(encoded(picture(*size), "JXL", **options))) == size


@needs_jxl
def test_jpeg_xl_decodes() -> None:
    import pillow_jxl  # noqa: F401

    data = encoded(picture(), "JXL", lossless=True)
    decoded = decode.decode_image(data)
    assert_close(decoded.image, picture(), 0)
    assert (decoded.width, decoded.height) == picture().size
    assert decode.decode_memory(data) == 48 * 32 * 12
    layers = picture().convert("RGBA")
    layers.putalpha(0)
    assert (numbers(decode.decode_image(encoded(layers, "JXL", lossless=True)).image) == 255).all()
    for end in (3, 11, 20, len(data) // 2, len(data) - 4):
        assert error(data[:end])


@needs_jxl
def test_bomb_of_jpeg_xl_is_refused_by_header() -> None:
    bits = 3 << 1 | (60_000 - 1) << 3 | 1 << 33  # a height of 30 bits, and a square
    data = b"\xff\x0a" + bits.to_bytes(8, "little") + bytes(40)
    assert error(data).startswith("too large: 60000x60000 ")


@needs_jxl
def test_jpeg_xl_is_not_decoded_for_its_size() -> None:
    """A program of its own, since these tests register the plugin."""
    program = """
import io, sys
from PIL import Image
from simsearch.errors import ImageError
from simsearch.images import decode, memory
data = sys.stdin.buffer.read()
assert decode.decode_image(data).width == 48
assert "JXL" not in Image.ID
assert memory.peak_memory(data) >= 48 * 32 * 12
"""
    import pillow_jxl  # noqa: F401

    done = subprocess.run([sys.executable, "-c", program], input=encoded(picture(), "JXL"), capture_output=True)
    assert done.returncode == 0, done.stderr


# -- raw files of cameras


def dng(width: int = 64, height: int = 48, preview: bytes = b"") -> bytes:
    """A raw file of a grey ramp, without a preview."""
    import tifffile

    ramp = np.linspace(0, 60_000, width).astype(np.uint16)[None].repeat(height, 0)
    matrix = np.array([1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1], np.int32).reshape(9, 2)
    out = io.BytesIO()
    tifffile.imwrite(
        out,
        ramp,
        photometric="cfa",
        extratags=[
            (271, 2, 0, "Test", True),
            (272, 2, 0, "Test", True),
            (33421, 3, 2, (2, 2), True),
            (33422, 1, 4, b"\0\1\1\2", True),
            (50706, 1, 4, b"\1\4\0\0", True),
            (50708, 2, 0, "Test", True),
            (50717, 4, 1, 65535, True),
            (50721, 10, 9, tuple(matrix.ravel().tolist()), True),
        ],
    )
    return out.getvalue()


@needs_raw
def test_raw_file_is_developed() -> None:
    decoded = decode.decode_image(dng())
    assert decoded.image.size == (decoded.width, decoded.height)
    assert abs(decoded.width - 64) <= 8
    rows = numbers(decoded.image).mean((0, 2))
    assert rows[0] < rows[len(rows) // 2] < rows[-1]
    assert decode.decode_memory(dng()) > 64 * 48 * 16
    assert decode.decode_image(io.BytesIO(dng())).width == decoded.width


@needs_raw
def test_raw_file_that_looks_like_tiff_needs_raw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rawpy", None)
    assert "needs the [raw] extra" in error(dng())


@needs_raw
def test_damaged_raw_file_is_a_reason() -> None:
    for data in (HEADS["Fujifilm RAF"] + bytes(4000), dng()[:600], HEADS["Canon CR3"] + bytes(99)):
        assert "raw file" in error(data)


@needs_raw
def test_preview_of_a_raw_file_is_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    import rawpy

    thumbnail = rawpy.Thumbnail(rawpy.ThumbFormat.JPEG, encoded(picture(64, 48), "JPEG", quality=95))
    sizes = type("Sizes", (), {"width": 64, "height": 48, "flip": 6})
    raw = type("Raw", (), {"sizes": sizes, "extract_thumb": lambda self: thumbnail})
    monkeypatch.setattr(raw, "__enter__", lambda self: self, raising=False)
    monkeypatch.setattr(raw, "__exit__", lambda self, *_: None, raising=False)
    monkeypatch.setattr(rawpy, "imread", lambda file: raw())
    decoded = decode.decode_image(HEADS["Fujifilm RAF"])
    assert_close(decoded.image, picture(64, 48).transpose(Image.Transpose.ROTATE_270), 4)
    assert (decoded.width, decoded.height) == (48, 64)


def test_box_longer_than_what_a_file_can_have() -> None:
    """Boxes of JPEG XL have lengths of 64 bits; a file can be read up to 63."""
    head = b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0\0\0\x01free" + (2**64 - 9).to_bytes(8, "big")
    with pytest.raises(ImageError, match="JPEG XL"):
        decode.decode_image(head + bytes(50))
    decode.decode_memory(head + bytes(50), 128)
