"""Every kind of file that a folder of pictures may hold: decoded upright into RGB, or refused with a reason."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from simsearch import images
from simsearch.errors import ImageError, WeightsError
from simsearch.recipe import FILTERS, Recipe, centre_crop, shorter_side

# In a program that does not turn warnings into errors, what Pillow only warns of is no reason to give a file up.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

WIDTH, HEIGHT = 48, 32
WHITE, BLACK, RED = (255, 255, 255), (0, 0, 0), (255, 0, 0)
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

needs_heif = pytest.mark.skipif(find_spec("pillow_heif") is None, reason="pillow_heif is not installed")


def picture(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A smooth picture without any symmetry: red grows to the right, green downwards, blue has one bright corner."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return Image.fromarray((np.stack([x, y, (x * y) ** 2], -1) * 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def exif(orientation: int) -> bytes:
    """An EXIF block, as bytes since some of Pillow's writers change the object that they are given."""
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A hand-made PNG of a given bit depth and colour type, which Pillow itself cannot write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def samples(array: NDArray[np.uint16]) -> bytes:
    """The rows of a 16-bit PNG, each after its filter byte."""
    return b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)


def numbers(image: Image.Image) -> NDArray[np.int64]:
    return np.asarray(image, np.int64)


def error(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        images.decode(data)
    return str(caught.value)


def assert_close(image: Image.Image, expected: Image.Image, tolerance: float) -> None:
    assert (image.mode, image.size) == ("RGB", expected.size)
    assert np.abs(numbers(image) - numbers(expected)).mean() <= tolerance


def first_pixel(data: bytes) -> tuple[int, ...]:
    image = images.decode(data).image
    assert image.mode == "RGB"
    return tuple(numbers(image)[0, 0].tolist())


# -- formats


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM", "TGA", "QOI", "PCX", "ICO", "WEBP", "JPEG2000", "DIB"])
def test_lossless_formats_decode_to_the_very_pixels(kind: str) -> None:
    lossless: dict[str, dict[str, Any]] = {"WEBP": {"lossless": True}, "ICO": {"sizes": [(WIDTH, HEIGHT)]}}
    options = lossless.get(kind, {})
    decoded = images.decode(encoded(picture(), kind, **options))
    assert_close(decoded.image, picture(), 0)
    assert (decoded.width, decoded.height) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "MPO"])
def test_lossy_formats_decode_to_nearly_the_pixels(kind: str) -> None:
    assert_close(images.decode(encoded(picture(), kind, quality=90)).image, picture(), 3)


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"optimize": True}, {"keep_rgb": True}])
def test_every_kind_of_jpeg_decodes(options: dict[str, Any]) -> None:
    assert_close(images.decode(encoded(picture(), "JPEG", quality=95, **options)).image, picture(), 3)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_compressed_tiff_decodes(compression: str) -> None:
    assert_close(images.decode(encoded(picture(), "TIFF", compression=compression)).image, picture(), 4)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
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
    assert_close(images.decode(data).image, cmyk.convert("RGB"), tolerance)


def test_16_bit_grey_png_is_scaled_down() -> None:
    grey = np.linspace(0, 65535, 64 * 4, dtype=np.uint16).reshape(4, 64)
    decoded = images.decode(png(64, 4, 16, 0, samples(grey))).image
    assert (numbers(decoded) == (grey >> 8)[..., None]).all()


def test_16_bit_colour_png_is_scaled_down() -> None:
    colours = np.linspace(0, 65535, 8 * 4 * 3, dtype=np.uint16).reshape(4, 24)
    decoded = images.decode(png(8, 4, 16, 2, samples(colours))).image
    assert (numbers(decoded).reshape(4, 24) == colours >> 8).all()


def test_16_bit_grey_and_alpha_png_lies_on_white() -> None:
    pairs = np.array([[0x4000, 0xFFFF, 0x4000, 0x0000]], np.uint16)
    decoded = images.decode(png(2, 1, 16, 4, samples(pairs))).image
    assert numbers(decoded).tolist() == [[[64, 64, 64], [255, 255, 255]]]


@pytest.mark.parametrize("order", ["I;16", "I;16B"])
def test_16_bit_tiff_of_either_byte_order_is_scaled_down(order: str) -> None:
    grey = np.linspace(0, 65535, 64 * 4, dtype=np.uint16).reshape(4, 64)
    raw = grey.astype(">u2" if order == "I;16B" else "<u2").tobytes()
    decoded = images.decode(encoded(Image.frombytes(order, (64, 4), raw), "TIFF")).image
    assert (numbers(decoded) == (grey >> 8)[..., None]).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 127, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([-5.0, 32767.5, 65535.0], [0, 127, 255]),
        ([float("nan"), 0.5, 1.0], [0, 127, 255]),
    ],
)
def test_float_tiff_is_scaled_by_what_it_holds(values: list[float], expected: list[int]) -> None:
    data = encoded(Image.fromarray(np.array([values], np.float32)), "TIFF")
    assert numbers(images.decode(data).image)[0].tolist() == [[value] * 3 for value in expected]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 1, 255], [0, 1, 255]), ([0, 256, 65535], [0, 0, 255]), ([0, 1 << 20, 1 << 21], [0, 127, 255])],
)
def test_32_bit_integer_tiff_is_scaled_by_what_it_holds(values: list[int], expected: list[int]) -> None:
    data = encoded(Image.fromarray(np.array([values], np.int32)), "TIFF")
    assert numbers(images.decode(data).image)[0].tolist() == [[value] * 3 for value in expected]


def test_bilevel_is_black_and_white() -> None:
    bilevel = Image.fromarray(np.array([[True, False]]))
    for kind in ("PNG", "TIFF", "PPM", "BMP"):
        assert numbers(images.decode(encoded(bilevel, kind)).image).tolist() == [[list(WHITE), list(BLACK)]]


def test_palette_becomes_its_colours() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF", "TIFF", "BMP"):
        assert numbers(images.decode(encoded(palette, kind)).image).tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_transparent_palette_entry_lies_on_white() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    for kind, transparency in (("PNG", 0), ("PNG", b"\x00\xff"), ("GIF", 0)):
        data = encoded(palette, kind, transparency=transparency)
        assert numbers(images.decode(data).image).tolist() == [[list(WHITE), [200, 100, 50]]], (kind, transparency)


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
def test_the_colour_that_a_png_calls_transparent_lies_on_white(mode: str, colour: Any) -> None:
    assert first_pixel(encoded(Image.new(mode, (4, 4), colour), "PNG", transparency=colour)) == WHITE


@pytest.mark.parametrize("mode", ["YCbCr", "LAB", "HSV", "RGBX", "RGBa", "PA"])
def test_any_other_mode_becomes_rgb(mode: str) -> None:
    assert images.to_rgb(Image.new(mode, (3, 2))).mode == "RGB"


def test_rgb_is_handed_on_without_a_copy() -> None:
    image = picture()
    assert images.to_rgb(image) is image


# -- orientation


def turned(orientation: int, kind: str, image: Image.Image) -> bytes:
    turn = STORED_BY[orientation]
    stored = image if turn is None else image.transpose(turn)
    options: dict[str, Any] = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}.get(kind, {"quality": 95})
    return encoded(stored, kind, exif=exif(orientation), **options)


@pytest.mark.parametrize("orientation", STORED_BY)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF", "MPO"])
def test_pictures_are_turned_upright_by_exif(kind: str, orientation: int) -> None:
    decoded = images.decode(turned(orientation, kind, picture()))
    assert_close(decoded.image, picture(), 0 if kind in {"PNG", "TIFF", "WEBP"} else 3)
    assert (decoded.width, decoded.height) == (WIDTH, HEIGHT)


@needs_heif
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_heic_which_turns_itself_is_not_turned_twice(orientation: int) -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()
    data = turned(orientation, "HEIF", picture(96, 64))
    assert (b"irot" in data) == (orientation != 1)
    decoded = images.decode(data)
    assert_close(decoded.image, picture(96, 64), 4)
    assert (decoded.width, decoded.height) == (96, 64)


@pytest.mark.parametrize("orientation", STORED_BY)
def test_pictures_are_upright_when_decoded_at_a_smaller_scale(orientation: int) -> None:
    original = picture(480, 320)
    decoded = images.decode(turned(orientation, "JPEG", original), 39)
    assert decoded.image.size == (120, 80)
    assert (decoded.width, decoded.height) == (480, 320)
    assert_close(decoded.image, original.resize((120, 80), Image.Resampling.BOX), 4)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_orientations_that_do_not_exist_are_ignored(value: int) -> None:
    assert_close(images.decode(encoded(picture(), "PNG", exif=exif(value))).image, picture(), 0)


@pytest.mark.parametrize("block", [b"", b"\0", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0garbage" * 9])
def test_damaged_exif_does_not_matter(block: bytes) -> None:
    decoded = images.decode(encoded(picture(), "JPEG", quality=95, exif=block))
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
def test_pictures_are_turned_even_if_the_rest_of_the_exif_is_damaged(tag: int, kind: int, value: bytes) -> None:
    fields = sorted([(0x0112, 3, 1, struct.pack("<HH", 6, 0)), (tag, kind, {2: 3, 7: 4}.get(kind, 1), value)])
    directory = b"".join(struct.pack("<HHI", *head) + content for *head, content in fields)
    block = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(fields)) + directory + bytes(4)
    decoded = images.decode(encoded(picture().transpose(Turn.ROTATE_90), "JPEG", quality=95, exif=block))
    assert (decoded.width, decoded.height) == decoded.image.size == (WIDTH, HEIGHT)
    assert_close(decoded.image, picture(), 3)


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
    assert error(eps) == "not an image, or of an unknown format"


@pytest.mark.parametrize("kind", ["png", "bmp"])
def test_decompression_bomb_is_refused_from_its_header(kind: str) -> None:
    data = png(30_000, 30_000, 8, 2, b"")
    if kind == "bmp":
        data = b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0)
    assert error(data).startswith("too large: ")
    assert f"{images.LARGEST_PIXELS:,}" in error(data)


def test_limit_holds_where_a_program_has_lifted_that_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert error(png(30_000, 30_000, 8, 2, b"")).startswith("too large: 30000x30000 ")


@pytest.mark.parametrize("size", [(1, 8_388_609), (8_388_609, 1)])
def test_lines_that_take_many_times_their_pixels_in_memory_are_refused(size: tuple[int, int]) -> None:
    """Pillow keeps a pointer for each row, and PNG two rows: a file of 300 kB would take gigabytes."""
    assert error(png(*size, 8, 0, b"")).startswith(f"too large: {size[0]}x{size[1]} has a side of over 8,388,608 ")


def test_panorama_within_the_limit_is_no_bomb() -> None:
    assert images.decode(encoded(Image.new("L", (40_000, 2)), "PNG")).width == 40_000


@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM", "QOI", "ICO", "TGA", "PCX", "MPO"]
)
def test_truncated_files_are_refused_with_a_reason_or_decoded(kind: str) -> None:
    data = encoded(picture(), kind)
    for part in np.linspace(1, len(data) - 1, 24, dtype=int).tolist():
        try:
            decoded = images.decode(data[:part])
        except ImageError as refused:
            assert str(refused).strip()
            assert "\n" not in str(refused)
        else:
            assert decoded.image.mode == "RGB"
    assert error(data[: len(data) // 2])


def test_reason_says_what_is_wrong_with_a_truncated_file() -> None:
    assert "truncated" in error(encoded(picture(480, 320), "JPEG")[:-200])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF"])
def test_flipped_bytes_are_refused_with_a_reason_or_decoded(kind: str) -> None:
    data = encoded(picture(), kind)
    generator = np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(data)
        for place in generator.integers(0, len(data), 4):
            damaged[place] = generator.integers(0, 256)
        try:
            assert images.decode(bytes(damaged), 16).image.mode == "RGB"
        except ImageError as refused:
            assert str(refused).strip()
            assert "\n" not in str(refused)


def test_running_out_of_memory_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    assert error(encoded(picture(), "PNG")) == "too large for the memory at hand"


# -- HEIC


@needs_heif
@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_heic_decodes(brand: bytes) -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()
    data = encoded(picture(), "HEIF", quality=90)
    decoded = images.decode(data[:8] + brand + data[12:])
    assert_close(decoded.image, picture(), 6)
    assert (decoded.width, decoded.height) == (WIDTH, HEIGHT)
    assert error(data[: len(data) // 2])


def test_heic_without_the_extra_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"HEIC needs the \[heif\] extra: pip install 'simsearch\[heif\]'") as caught:
        images.decode(b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf")
    assert caught.value.hint == "pip install 'simsearch[heif]'"


@pytest.mark.parametrize("brand", [b"avif", b"mif1"])
def test_avif_needs_no_extra_whatever_it_calls_itself(brand: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    data = encoded(picture(), "AVIF", quality=90)
    assert_close(images.decode(data[:8] + brand + data[12:]).image, picture(), 3)


# -- decoding at a smaller scale


@pytest.mark.parametrize("size", [(64, 64), (999, 701), (701, 999), (1600, 300), (257, 2000)])
@pytest.mark.parametrize("needed", [16, 33, 100])
def test_jpeg_is_never_decoded_below_twice_the_pixels_needed(size: tuple[int, int], needed: int) -> None:
    decoded = images.decode(encoded(picture(*size), "JPEG"), needed)
    assert min(decoded.image.size) >= min(2 * needed, *size)
    assert (decoded.width, decoded.height) == size
    assert (min(decoded.image.size) < min(size)) == (min(size) >= 4 * needed)


def test_only_jpeg_is_decoded_at_a_smaller_scale() -> None:
    assert images.decode(encoded(picture(400, 300), "PNG"), 10).image.size == (400, 300)
    assert images.decode(encoded(picture(400, 300), "JPEG")).image.size == (400, 300)


# -- what the network sees


def test_recipe_scales_the_shorter_side_and_cuts_the_centre_out() -> None:
    image = Image.new("RGB", (90, 30), "blue")
    image.paste((255, 0, 0), (30, 0, 60, 30))
    pixels = Recipe(resize=10, crop=10).pixels(image)
    assert pixels.shape == (10, 10, 3)
    assert pixels[:, 1:-1].reshape(-1, 3).tolist() == [list(RED)] * 80


@pytest.mark.parametrize("size", [(20_000, 10), (10, 20_000), (5000, 1), (1, 5000), (1, 1), (65, 1)])
def test_recipe_takes_the_middle_of_a_panorama_without_blowing_it_up(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.new("RGB", size, "blue")
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    image.paste((255, 0, 0), (left - 2 * side, top - 2 * side, left + 3 * side, top + 3 * side))
    resize, scaled = Image.Image.resize, []

    def recorded(self: Image.Image, size: tuple[int, int], *arguments: Any, **options: Any) -> Image.Image:
        scaled.append(size)
        return resize(self, size, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", recorded)
    pixels = Recipe(resize=16, crop=16).pixels(image)
    assert pixels.shape == (16, 16, 3)
    assert (pixels == RED).all()
    assert all(max(size) <= 64 * 16 for size in scaled)


def test_recipe_refuses_what_it_cannot_do() -> None:
    with pytest.raises(WeightsError, match="crop 21 does not fit into resize 10"):
        Recipe(resize=10, crop=21)
    with pytest.raises(WeightsError, match="'nearest' is none of bilinear"):
        Recipe(interpolation="nearest")
    with pytest.raises(WeightsError, match="unknown key 'flip'"):
        Recipe.from_dict({"flip": True})


def test_recipe_survives_json() -> None:
    recipe = Recipe(resize=10, crop=9, mean=(1.0, 2.0, 3.0))
    assert (
        Recipe.from_dict({key: list(v) if isinstance(v, tuple) else v for key, v in recipe.to_dict().items()}) == recipe
    )


# -- signatures, arrays, crops

ISO = b"\0\0\0\x1cftyp"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "JPEG2000", "QOI", "MPO"])
def test_pictures_look_like_images_by_their_first_32_bytes(kind: str) -> None:
    assert images.looks_like_image(encoded(picture(), kind)[:32])


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
    assert images.looks_like_image(head) is expected


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
    image = images.from_array(array)
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
        images.from_array(array)


def test_crop_cuts_out_x_y_width_height() -> None:
    image = picture(10, 8)
    assert numbers(images.crop(image, (2, 3, 4, 5))).tolist() == numbers(image)[3:8, 2:6].tolist()
    assert images.crop(image, (0, 0, 10, 8)).size == (10, 8)


@pytest.mark.parametrize("box", [(-1, 0, 2, 2), (0, -1, 2, 2), (0, 0, 0, 2), (0, 0, 2, -2), (9, 0, 2, 2), (0, 7, 2, 2)])
def test_crop_that_leaves_the_image_is_refused(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(ImageError, match=r"crop .* does not lie within the 10x8 image"):
        images.crop(picture(10, 8), box)


@pytest.mark.parametrize(
    "size", [(400, 533), (533, 400), (146, 200), (147, 146), (128, 128), (1000, 31), (4000, 60), (20_000, 10)]
)
@pytest.mark.parametrize(("resize", "crop"), [(146, 128), (256, 224), (32, 32), (28, 32)])
def test_scaling_only_the_centre_is_scaling_and_cutting(size: tuple[int, int], resize: int, crop: int) -> None:
    array = np.random.default_rng(sum(size)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(array)
    whole = centre_crop(shorter_side(image, resize, FILTERS["bilinear"]), crop)
    part = Recipe(resize, crop).pixels(image)
    assert part.shape == whole.shape
    assert np.abs(part.astype(int) - whole.astype(int)).max() <= 1
