"""Pictures of rarer formats and modes show what browsers show."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from simsearch.images import decode
from simsearch.images.decoding import modes
from tests.helpers.encoded import BLACK, HEIGHT, WHITE, WIDTH, assert_close, encoded, numbers, picture

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def first_pixel(data: bytes) -> tuple[int, ...]:
    return tuple(numbers(decode.decode_image(data).image)[0, 0].tolist())


def bmp(header: int, alpha: int) -> bytes:
    """A BMP of 32 bits with masks for four channels."""
    pixels = np.dstack([np.asarray(picture())[..., ::-1], np.full((HEIGHT, WIDTH, 1), alpha, np.uint8)])[::-1]
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = struct.pack("<IiiHHIIiiII", header, WIDTH, HEIGHT, 1, 32, 3, pixels.size, 2835, 2835, 0, 0) + masks
    head = head.ljust(header, b"\0")
    place = 14 + len(head)
    return b"BM" + struct.pack("<IHHI", place + pixels.size, 0, 0, place) + head + pixels.tobytes()


@pytest.mark.parametrize("header", [56, 108, 124])
def test_alpha_of_a_bmp_that_is_all_zero(header: int) -> None:
    for alpha in (0, 255):
        assert_close(decode.decode_image(bmp(header, alpha)).image, picture(), 0)
    half = numbers(decode.decode_image(bmp(header, 128)).image)
    assert np.abs(half - (numbers(picture()) * 128 + 255 * 127) // 255).max() <= 1


@pytest.mark.parametrize("kind", ["TGA", "ICO", "DDS"])
def test_unused_alpha_of_other_formats(kind: str) -> None:
    layers = picture().convert("RGBA")
    layers.putalpha(0)
    options: dict[str, Any] = {"ICO": {"sizes": [(WIDTH, HEIGHT)], "bitmap_format": "bmp"}}.get(kind, {})
    assert_close(decode.decode_image(encoded(layers, kind, **options)).image, picture(), 0)


def icon(size: int, mask: NDArray[np.bool_]) -> bytes:
    """An icon of 32 bits whose alpha is 0 everywhere. mask: (H, W), True where it is transparent."""
    layers = np.dstack([np.asarray(picture(size, size))[..., ::-1], np.zeros((size, size), np.uint8)])[::-1]
    rows = np.packbits(np.pad(mask[::-1], ((0, 0), (0, -size % 32))), axis=1)
    body = struct.pack("<IiiHHIIiiII", 40, size, 2 * size, 1, 32, 0, 0, 0, 0, 0, 0) + layers.tobytes() + rows.tobytes()
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, size, size, 0, 0, 1, 32, len(body), 22) + body


@pytest.mark.parametrize("size", [16, 24, 48])
def test_mask_of_an_icon_without_alpha(size: int) -> None:
    mask = np.zeros((size, size), bool)
    mask[: size // 3, 2:] = True
    expected = np.where(mask[..., None], 255, np.asarray(picture(size, size))).astype(np.uint8)
    assert_close(decode.decode_image(icon(size, mask)).image, Image.fromarray(expected), 0)
    for whole in (np.zeros_like(mask), np.ones_like(mask)):  # nothing is hidden, or everything: then alpha is unused
        assert_close(decode.decode_image(icon(size, whole)).image, picture(size, size), 0)
    assert_close(decode.decode_image(icon(size, mask)[:-5]).image, picture(size, size), 0)


@pytest.mark.parametrize("kind", ["TGA", "ICO", "DDS", "SGI", "JPEG2000", "PNG", "WEBP", "TIFF", "QOI"])
def test_alpha_of_every_format_lies_on_white(kind: str) -> None:
    layers = Image.new("RGBA", (16, 16), (200, 0, 0, 255))
    layers.paste((0, 0, 0, 0), (0, 0, 8, 16))
    given: dict[str, dict[str, Any]] = {"ICO": {"sizes": [(16, 16)]}, "WEBP": {"lossless": True}}
    options = given.get(kind, {})
    found = numbers(decode.decode_image(encoded(layers, kind, **options)).image)
    assert found[8, [0, 15]].tolist() == [list(WHITE), [200, 0, 0]]


def test_clear_png_is_white() -> None:
    assert (numbers(decode.decode_image(encoded(Image.new("RGBA", (4, 4)), "PNG")).image) == 255).all()


@pytest.mark.parametrize("mode", ["La", "LA", "RGBa", "RGBA"])
def test_every_mode_with_alpha(mode: str) -> None:
    for colour, expected in (((0, 0, 0, 255), BLACK), ((0, 0, 0, 0), WHITE)):
        layers = Image.new("RGBA", (3, 2), colour)
        image = layers.convert("LA").convert(mode) if mode == "La" else layers.convert(mode)
        image.putalpha(colour[3])
        assert modes.to_rgb(image).getpixel((0, 0)) == expected


def test_palette_with_alpha() -> None:
    for alpha, expected in ((255, (10, 20, 30)), (0, WHITE)):
        image = Image.new("PA", (3, 2))
        image.putpalette([10, 20, 30])
        image.putalpha(alpha)
        assert first_pixel(encoded(image, "TIFF")) == modes.to_rgb(image).getpixel((0, 0)) == expected


def test_small_first_frame_of_a_gif() -> None:
    frame = picture(20, 10).quantize(64)
    data = bytearray(encoded(frame, "GIF"))
    data[6:10] = struct.pack("<HH", WIDTH, HEIGHT)
    start = data.index(b",\0\0\0\0" + struct.pack("<HH", 20, 10))
    data[start + 1 : start + 5] = struct.pack("<HH", 5, 7)
    expected = Image.new("RGB", (WIDTH, HEIGHT), "white")
    expected.paste(frame.convert("RGB"), (5, 7))
    decoded = decode.decode_image(bytes(data))
    assert_close(decoded.image, expected, 0)
    assert (decoded.width, decoded.height) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("top", [255, 256, 1000, 4095, 65535])
@pytest.mark.parametrize("plain", [False, True])
def test_pgm_is_scaled_by_its_maximum(top: int, plain: bool) -> None:
    levels = np.array([0, top // 100, top // 4, top // 2, top])
    for chosen in (levels, levels[:2]):  # a dark picture stays dark
        head = f"P{2 if plain else 5}\n{len(chosen)} 1\n{top}\n".encode()
        body = " ".join(map(str, chosen)).encode() if plain else chosen.astype("u1" if top < 256 else ">u2").tobytes()
        found = numbers(decode.decode_image(head + body).image)[0, :, 0]
        assert np.abs(found - chosen * 255 / top).max() <= 1


def test_ppm_of_16_bits_is_scaled_by_its_maximum() -> None:
    values = np.array([0, 10, 1000, 250, 500, 750], ">u2")
    found = numbers(decode.decode_image(b"P6\n2 1\n1000\n" + values.tobytes()).image)
    assert np.abs(found.ravel() - values.astype(float) * 255 / 1000).max() <= 1


@pytest.mark.parametrize("kind", ["WEBP", "GIF"])
def test_first_frame_of_an_animation_with_alpha(kind: str) -> None:
    first, second = Image.new("RGBA", (16, 16), (200, 0, 0, 255)), Image.new("RGBA", (16, 16), "blue")
    first.paste((0, 0, 0, 0), (0, 0, 8, 16))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(first, kind, save_all=True, append_images=[second], **options)
    found = numbers(decode.decode_image(io.BytesIO(data)).image)
    assert np.abs(found[8, [1, 14]] - [WHITE, (200, 0, 0)]).max() <= 4
