"""Images of every format and mode decode to their pixels."""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from simsearch.errors import ImageError
from simsearch.images import decode
from simsearch.images.decoding import modes
from simsearch.installation import install_line
from tests.helpers.encoded import (
    BLACK,
    HEIGHT,
    RED,
    WHITE,
    WIDTH,
    assert_close,
    encoded,
    error,
    needs_heif,
    numbers,
    picture,
    png,
)

# In a program that does not turn warnings into errors, what Pillow only warns of is no reason to give a file up.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def samples(array: NDArray[np.uint16]) -> bytes:
    """The rows of a 16-bit PNG, each after its filter byte."""
    return b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)


def first_pixel(data: bytes) -> tuple[int, ...]:
    image = decode.decode_image(data).image
    assert image.mode == "RGB"
    return tuple(numbers(image)[0, 0].tolist())


# -- formats


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM", "TGA", "QOI", "PCX", "ICO", "WEBP", "JPEG2000", "DIB"])
def test_lossless_formats_decode_exactly(kind: str) -> None:
    lossless: dict[str, dict[str, Any]] = {"WEBP": {"lossless": True}, "ICO": {"sizes": [(WIDTH, HEIGHT)]}}
    options = lossless.get(kind, {})
    decoded = decode.decode_image(encoded(picture(), kind, **options))
    assert_close(decoded.image, picture(), 0)
    assert (decoded.width, decoded.height) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "MPO"])
def test_lossy_formats_decode_closely(kind: str) -> None:
    assert_close(decode.decode_image(encoded(picture(), kind, quality=90)).image, picture(), 3)


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"optimize": True}, {"keep_rgb": True}])
def test_every_kind_of_jpeg_decodes(options: dict[str, Any]) -> None:
    assert_close(decode.decode_image(encoded(picture(), "JPEG", quality=95, **options)).image, picture(), 3)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_compressed_tiff_decodes(compression: str) -> None:
    assert_close(decode.decode_image(encoded(picture(), "TIFF", compression=compression)).image, picture(), 4)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_animation_gives_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(data)) as opened:
        assert getattr(opened, "n_frames", 1) == 3
    assert np.abs(np.subtract(first_pixel(data), RED)).max() <= 4


# -- modes


@pytest.mark.parametrize(("kind", "tolerance"), [("JPEG", 4), ("TIFF", 1)])
def test_cmyk_is_not_inverted(kind: str, tolerance: float) -> None:
    cmyk = picture().convert("CMYK")
    data = encoded(cmyk, kind, **({"quality": 95} if kind == "JPEG" else {}))
    if kind == "JPEG":
        assert b"Adobe" in data  # whose programs store the inks inverted
    assert_close(decode.decode_image(data).image, cmyk.convert("RGB"), tolerance)


def test_16_bit_grey_png_is_scaled_down() -> None:
    grey = np.linspace(0, 65535, 64 * 4, dtype=np.uint16).reshape(4, 64)
    decoded = decode.decode_image(png(64, 4, 16, 0, samples(grey))).image
    assert (numbers(decoded) == (grey >> 8)[..., None]).all()


def test_16_bit_colour_png_is_scaled_down() -> None:
    colours = np.linspace(0, 65535, 8 * 4 * 3, dtype=np.uint16).reshape(4, 24)
    decoded = decode.decode_image(png(8, 4, 16, 2, samples(colours))).image
    assert (numbers(decoded).reshape(4, 24) == colours >> 8).all()


def test_16_bit_grey_and_alpha_png_lies_on_white() -> None:
    pairs = np.array([[0x4000, 0xFFFF, 0x4000, 0x0000]], np.uint16)
    decoded = decode.decode_image(png(2, 1, 16, 4, samples(pairs))).image
    assert numbers(decoded).tolist() == [[[64, 64, 64], [255, 255, 255]]]


@pytest.mark.parametrize("order", ["I;16", "I;16B"])
def test_16_bit_tiff_of_any_order_is_scaled_down(order: str) -> None:
    grey = np.linspace(0, 65535, 64 * 4, dtype=np.uint16).reshape(4, 64)
    raw = grey.astype(">u2" if order == "I;16B" else "<u2").tobytes()
    decoded = decode.decode_image(encoded(Image.frombytes(order, (64, 4), raw), "TIFF")).image
    assert (numbers(decoded) == (grey >> 8)[..., None]).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 127, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([-5.0, 32767.5, 65535.0], [0, 127, 255]),
        ([float("nan"), 0.5, 1.0], [0, 127, 255]),
        ([float("inf"), 0.5, 1.0], [255, 127, 255]),
        ([float("-inf"), 0.5, 1.02], [0, 127, 255]),
        ([0.0, 0.5, 7.9], [0, 127, 255]),
        ([float("inf"), 100.0, 200.0], [200, 100, 200]),
    ],
)
def test_float_tiff_is_scaled_by_what_it_holds(values: list[float], expected: list[int]) -> None:
    data = encoded(Image.fromarray(np.array([values], np.float32)), "TIFF")
    assert numbers(decode.decode_image(data).image)[0].tolist() == [[value] * 3 for value in expected]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 1, 255], [0, 1, 255]), ([0, 256, 65535], [0, 0, 255]), ([0, 1 << 20, 1 << 21], [0, 127, 255])],
)
def test_32_bit_integer_tiff_is_scaled_by_range(values: list[int], expected: list[int]) -> None:
    data = encoded(Image.fromarray(np.array([values], np.int32)), "TIFF")
    assert numbers(decode.decode_image(data).image)[0].tolist() == [[value] * 3 for value in expected]


def test_bilevel_is_black_and_white() -> None:
    bilevel = Image.fromarray(np.array([[True, False]]))
    for kind in ("PNG", "TIFF", "PPM", "BMP"):
        assert numbers(decode.decode_image(encoded(bilevel, kind)).image).tolist() == [[list(WHITE), list(BLACK)]]


def test_palette_becomes_its_colours() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF", "TIFF", "BMP"):
        assert numbers(decode.decode_image(encoded(palette, kind)).image).tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_transparent_palette_entry_lies_on_white() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    for kind, transparency in (("PNG", 0), ("PNG", b"\x00\xff"), ("GIF", 0)):
        data = encoded(palette, kind, transparency=transparency)
        assert numbers(decode.decode_image(data).image).tolist() == [[list(WHITE), [200, 100, 50]]], (
            kind,
            transparency,
        )


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (0, 0, 0, 0), WHITE),
        ("RGBA", (200, 0, 0, 255), (200, 0, 0)),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("LA", (0, 0), WHITE),
        ("LA", (80, 255), (80, 80, 80)),
    ],
)
def test_alpha_lies_on_white(mode: str, colour: tuple[int, ...], expected: tuple[int, ...]) -> None:
    image = Image.new(mode, (4, 4), colour)
    for kind in ("PNG", "TIFF") if mode == "LA" else ("PNG", "TIFF", "TGA", "ICO"):
        assert first_pixel(encoded(image, kind)) == expected
    if mode == "RGBA":
        assert first_pixel(encoded(image, "WEBP", lossless=True, exact=True)) == expected


@pytest.mark.parametrize(("mode", "colour"), [("RGB", (1, 2, 3)), ("L", 9), ("1", 0)])
def test_transparent_png_colour_lies_on_white(mode: str, colour: Any) -> None:
    assert first_pixel(encoded(Image.new(mode, (4, 4), colour), "PNG", transparency=colour)) == WHITE


@pytest.mark.parametrize("mode", ["YCbCr", "LAB", "HSV", "RGBX", "RGBa", "PA"])
def test_any_other_mode_becomes_rgb(mode: str) -> None:
    assert modes.to_rgb(Image.new(mode, (3, 2))).mode == "RGB"


def test_rgb_is_handed_on_without_a_copy() -> None:
    image = picture()
    assert modes.to_rgb(image) is image


# -- HEIC


@needs_heif
@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_heic_decodes(brand: bytes) -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()
    data = encoded(picture(), "HEIF", quality=90)
    decoded = decode.decode_image(data[:8] + brand + data[12:])
    assert_close(decoded.image, picture(), 6)
    assert (decoded.width, decoded.height) == (WIDTH, HEIGHT)
    assert error(data[: len(data) // 2])


def test_heic_without_the_extra_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"HEIC needs the \[heif\] extra: .*pip install") as caught:
        decode.decode_image(b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf")
    assert caught.value.hint == install_line("heif")


@pytest.mark.parametrize("brand", [b"avif", b"mif1"])
def test_avif_needs_no_extra_under_any_brand(brand: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    data = encoded(picture(), "AVIF", quality=90)
    assert_close(decode.decode_image(data[:8] + brand + data[12:]).image, picture(), 3)


# -- decoding at a smaller scale


@pytest.mark.parametrize("size", [(64, 64), (999, 701), (701, 999), (1600, 300), (257, 2000)])
@pytest.mark.parametrize("needed", [16, 33, 100])
def test_jpeg_is_decoded_at_half_as_much_again_as_is_needed(size: tuple[int, int], needed: int) -> None:
    decoded = decode.decode_image(encoded(picture(*size), "JPEG"), needed)
    assert min(decoded.image.size) >= min(1.5 * needed, *size)
    assert (decoded.width, decoded.height) == size
    assert (min(decoded.image.size) < min(size)) == (min(size) >= 3 * needed)


def test_only_jpeg_is_decoded_at_a_smaller_scale() -> None:
    assert decode.decode_image(encoded(picture(400, 300), "PNG"), 10).image.size == (400, 300)
    assert decode.decode_image(encoded(picture(400, 300), "JPEG")).image.size == (400, 300)


# -- signatures, arrays, crops

ISO = b"\0\0\0\x1cftyp"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000", "QOI", "MPO"])
def test_32_bytes_show_that_it_is_an_image(kind: str) -> None:
    assert decode.looks_like_image(encoded(picture(), kind)[:32])


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"", False),
        (b"\xff\xd8", False),
        (b"\xff\xd8\xff\xe0", True),
        (b"GIF89a", True),
        (b"GIF88a", False),
        (b"RIFF\x10\0\0\0WEBPVP8 ", True),
        (b"RIFF\x10\0\0\0WAVEfmt ", False),
        (ISO + b"heic", True),
        (ISO + b"avif", True),
        (ISO + b"mp42", False),
        (ISO, False),
        (b"BM", False),
        (b"BMW: a car", False),
        (b"BM" + bytes(4) + bytes(4) + b"\x36\0\0\0\x28\0\0\0", True),
        (b"BM" + bytes(4) + b"abcd" + b"\x36\0\0\0\x28\0\0\0", False),
        (b"II*\0", True),
        (b"MM\0*", True),
        (b"II", False),
        (b"8BPS\0\1", True),
        (b"%PDF-1.7", False),
        (b"PK\x03\x04", False),
        (b"path,label\n", False),
    ],
)
def test_signatures(head: bytes, expected: bool) -> None:
    assert decode.looks_like_image(head) is expected


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.full((2, 3, 3), (1, 2, 3), np.uint8), (1, 2, 3)),
        (np.full((2, 3), 7, np.uint8), (7, 7, 7)),
        (np.full((2, 3, 4), (9, 9, 9, 0), np.uint8), WHITE),
        (np.full((4, 6, 3), (1, 2, 3), np.uint8)[::2, ::-2], (1, 2, 3)),
    ],
    ids=["colour", "grey", "alpha", "strided"],
)
def test_arrays_become_images(array: NDArray[np.uint8], expected: tuple[int, ...]) -> None:
    image = decode.from_array(array)
    assert (image.mode, image.size) == ("RGB", (3, 2))
    assert image.getpixel((0, 0)) == expected


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, 3), np.float32), r"not \(2, 3, 3\) float32"),
        (np.zeros((3, 2, 3, 3), np.uint8), r"not \(3, 2, 3, 3\) uint8"),
        (np.zeros((2, 3, 2), np.uint8), r"not \(2, 3, 2\) uint8"),
        (np.zeros(9, np.uint8), r"not \(9,\) uint8"),
        (np.zeros((0, 3, 3), np.uint8), r"\(0, 3, 3\) holds no pixels"),
    ],
)
def test_other_arrays_are_refused(array: NDArray[Any], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode.from_array(array)


def test_crop_cuts_out_x_y_width_height() -> None:
    image = picture(10, 8)
    assert numbers(decode.crop(image, (2, 3, 4, 5))).tolist() == numbers(image)[3:8, 2:6].tolist()
    assert decode.crop(image, (0, 0, 10, 8)).size == (10, 8)


@pytest.mark.parametrize("box", [(-1, 0, 2, 2), (0, -1, 2, 2), (0, 0, 0, 2), (0, 0, 2, -2), (9, 0, 2, 2), (0, 7, 2, 2)])
def test_crop_that_leaves_the_image_is_refused(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(ImageError, match=r"crop .* (does not lie within the 10x8 image|has no area)"):
        decode.crop(picture(10, 8), box)
