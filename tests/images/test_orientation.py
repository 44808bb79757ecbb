"""Images are turned upright by their EXIF."""

from __future__ import annotations

import io
import struct
from typing import Any

import pytest
from PIL import Image

from simsearch.images import decode
from tests.helpers.encoded import HEIGHT, WIDTH, assert_close, chunk, encoded, needs_heif, picture

# In a program that does not turn warnings into errors, what Pillow only warns of is no reason to give a file up.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
Turn = Image.Transpose


STORED_BY = {
    1: None,
    2: Turn.FLIP_LEFT_RIGHT,
    3: Turn.ROTATE_180,
    4: Turn.FLIP_TOP_BOTTOM,
    5: Turn.TRANSPOSE,
    6: Turn.ROTATE_90,
    7: Turn.TRANSVERSE,
    8: Turn.ROTATE_270,
}
"""How a camera that writes this EXIF orientation has turned the picture."""


def exif(orientation: int) -> bytes:
    """An EXIF block, as bytes since some of Pillow's writers change the object that they are given."""
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


# -- orientation


def turned(orientation: int, kind: str, image: Image.Image) -> bytes:
    turn = STORED_BY[orientation]
    stored = image if turn is None else image.transpose(turn)
    options: dict[str, Any] = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}.get(kind, {"quality": 95})
    return encoded(stored, kind, exif=exif(orientation), **options)


@pytest.mark.parametrize("orientation", STORED_BY)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF", "MPO"])
def test_pictures_are_turned_upright_by_exif(kind: str, orientation: int) -> None:
    decoded = decode.decode_image(turned(orientation, kind, picture()))
    assert_close(decoded.image, picture(), 0 if kind in {"PNG", "TIFF", "WEBP"} else 3)
    assert (decoded.width, decoded.height) == (WIDTH, HEIGHT)


@needs_heif
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_heic_is_not_turned_twice(orientation: int) -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()
    data = turned(orientation, "HEIF", picture(96, 64))
    assert (b"irot" in data) == (orientation != 1)
    decoded = decode.decode_image(data)
    assert_close(decoded.image, picture(96, 64), 4)
    assert (decoded.width, decoded.height) == (96, 64)


@pytest.mark.parametrize("orientation", STORED_BY)
def test_smaller_decoding_is_upright(orientation: int) -> None:
    original = picture(480, 320)
    decoded = decode.decode_image(turned(orientation, "JPEG", original), 39)
    assert decoded.image.size == (120, 80)
    assert (decoded.width, decoded.height) == (480, 320)
    assert_close(decoded.image, original.resize((120, 80), Image.Resampling.BOX), 4)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_unknown_orientations_are_ignored(value: int) -> None:
    assert_close(decode.decode_image(encoded(picture(), "PNG", exif=exif(value))).image, picture(), 0)


@pytest.mark.parametrize("block", [b"", b"\0", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage" * 9])
def test_damaged_exif_does_not_matter(block: bytes) -> None:
    decoded = decode.decode_image(encoded(picture(), "JPEG", quality=95, exif=block))
    assert_close(decoded.image, picture(), 3)


@pytest.mark.parametrize(
    ("tag", "kind", "value"),
    [
        (0x0100, 2, b"ab\0\0"),
        (0x0103, 13, b"\xff\xff\xff\x7f"),
        (0x011A, 7, b"abc\0"),
        (0x8769, 13, b"\xff\xff\xff\x7f"),
    ],
    ids=["text as width", "compression too large", "bytes as resolution", "pointer to nowhere"],
)
def test_orientation_counts_in_damaged_exif(tag: int, kind: int, value: bytes) -> None:
    fields = sorted([(0x0112, 3, 1, struct.pack("<HH", 6, 0)), (tag, kind, {2: 3, 7: 4}.get(kind, 1), value)])
    directory = b"".join(struct.pack("<HHI", *head) + content for *head, content in fields)
    block = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(fields)) + directory + bytes(4)
    decoded = decode.decode_image(encoded(picture().transpose(Turn.ROTATE_90), "JPEG", quality=95, exif=block))
    assert (decoded.width, decoded.height) == decoded.image.size == (WIDTH, HEIGHT)
    assert_close(decoded.image, picture(), 3)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4])
def test_orientation_of_any_order_and_type(order: str, kind: int) -> None:
    value = struct.pack(order + "HH", 6, 0) if kind == 3 else struct.pack(order + "I", 6)
    block = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, 1)
    block += struct.pack(order + "HHI", 0x0112, kind, 1) + value + bytes(4)
    data = encoded(picture().transpose(Turn.ROTATE_90), "JPEG", quality=95, exif=b"Exif\0\0" + block)
    assert_close(decode.decode_image(data).image, picture(), 3)


# -- XMP


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def with_xmp(kind: str, image: Image.Image, **options: Any) -> bytes:
    if kind == "JPEG":
        data, segment = encoded(image, kind, quality=95, **options), b"http://ns.adobe.com/xap/1.0/\0" + XMP
        return data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    if kind == "PNG":
        data, body = encoded(image, kind, **options), b"XML:com.adobe.xmp\0\0\0\0\0" + XMP
        return data[:33] + chunk(b"iTXt", body) + data[33:]
    if kind == "TIFF":
        return encoded(image, kind, tiffinfo={700: XMP}, **options)
    return encoded(image, kind, quality=95, xmp=XMP, **options)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_orientation_of_xmp_is_ignored(kind: str) -> None:
    data = with_xmp(kind, picture())
    assert_close(decode.decode_image(data).image, picture(), 4)
    assert_close(decode.decode_image(data, 30).image, picture(), 4)
    with Image.open(io.BytesIO(data)) as image:
        assert decode.from_pil(image).size == ((HEIGHT, WIDTH) if kind == "TIFF" else (WIDTH, HEIGHT))
        assert kind == "TIFF" or decode.from_pil(image.copy()).size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_orientation_of_exif_goes_before_xmp(kind: str) -> None:
    data = with_xmp(kind, picture().transpose(Turn.ROTATE_180), exif=exif(3))
    assert_close(decode.decode_image(data).image, picture(), 4)


@needs_heif
def test_heic_ignores_xmp() -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()
    data = encoded(picture(96, 64), "HEIF", quality=95, xmp=XMP.replace(b'"6"', b'"1"'))
    assert b"irot" not in data
    data = data.replace(b'Orientation="1"', b'Orientation="6"')
    decoded = decode.decode_image(data)
    assert (decoded.width, decoded.height) == (96, 64)


def test_callers_image_is_turned_once() -> None:
    image = picture().transpose(Turn.ROTATE_90)
    image.getexif()[0x0112] = 6
    assert_close(decode.from_pil(image), picture(), 0)
    for kind in ("PNG", "TIFF"):
        with Image.open(io.BytesIO(turned(6, kind, picture()))) as opened:
            assert_close(decode.from_pil(opened), picture(), 0)
            assert_close(decode.from_pil(opened.copy()), picture(), 0)


def test_exif_behind_the_pixels_counts() -> None:
    data = encoded(picture().transpose(Turn.ROTATE_90), "PNG")
    data = data[:-12] + chunk(b"eXIf", exif(6).removeprefix(b"Exif\0\0")) + data[-12:]
    assert_close(decode.decode_image(data).image, picture(), 0)
