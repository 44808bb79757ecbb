"""Pictures with ICC profiles become sRGB."""

from __future__ import annotations

import io
import struct
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simsearch.images import decode
from simsearch.images.decoding import colour
from tests.helpers.encoded import assert_close, encoded, numbers, picture, tiff
from tests.helpers.profiles import GREY_INKS, LINEAR_GREY, PROPHOTO, SRGB, SRGB_PRIMARIES, WIDE

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def in_prophoto(image: Image.Image, gamma: float = 1.8) -> Image.Image:
    """The same picture with values of ProPhoto RGB."""
    values = numbers(image) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    light = (linear @ SRGB_PRIMARIES @ np.linalg.inv(PROPHOTO)).clip(0, 1)
    return Image.fromarray((light ** (1 / gamma) * 255).round().astype(np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_wide_colours_become_srgb(kind: str) -> None:
    options: dict[str, Any] = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}.get(kind, {"quality": 98})
    if kind == "JPEG":
        options["subsampling"] = 0
    data = encoded(in_prophoto(picture()), kind, icc_profile=WIDE, **options)
    assert np.abs(numbers(in_prophoto(picture())) - numbers(picture())).mean() > 10
    assert_close(decode.decode_image(data).image, picture(), 3)
    assert_close(decode.decode_image(data, 30).image, picture(), 3)


@pytest.mark.skipif(find_spec("tifffile") is None, reason="tifffile is not installed")
def test_wide_floats_become_srgb() -> None:
    profile = tuple(np.frombuffer(WIDE + bytes(len(WIDE) % 2), np.uint16).tolist())
    values = (np.asarray(in_prophoto(picture())) / 255).astype(np.float32)
    data = bytearray(tiff(values, 2, t34675=profile))
    place = data.index(struct.pack("<HH", 34675, 3))  # bytes in place of numbers of 16 bits
    data[place + 2 : place + 8] = struct.pack("<HI", 7, 2 * len(profile))
    assert_close(decode.decode_image(bytes(data)).image, picture(), 2)


def test_colours_of_a_palette_and_alpha_become_srgb() -> None:
    palette = in_prophoto(picture()).quantize(256)
    assert_close(decode.decode_image(encoded(palette, "PNG", icc_profile=WIDE)).image, picture(), 6)
    layers = in_prophoto(picture()).convert("RGBA")
    layers.putpixel((0, 0), (0, 0, 0, 0))
    found = decode.decode_image(encoded(layers, "PNG", icc_profile=WIDE)).image
    assert_close(found, picture(), 2)
    assert found.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_greys_become_srgb(mode: str) -> None:
    levels = np.arange(256)
    linear = np.where(levels <= 10, levels / 255 / 12.92, ((levels / 255 + 0.055) / 1.055) ** 2.4)
    if mode == "I;16":
        image = Image.fromarray((linear * 65535).round().astype(np.uint16)[None])
    else:
        image = Image.fromarray((linear * 255).round().astype(np.uint8)[None]).convert(mode)
    found = numbers(decode.decode_image(encoded(image, "PNG", icc_profile=LINEAR_GREY)).image)
    assert np.abs(found - levels[None, :, None]).mean() < 3


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_inks_become_srgb_by_their_profile(kind: str) -> None:
    image = Image.new("CMYK", (32, 16))
    image.paste((0, 0, 0, 255), (0, 0, 16, 16))
    options = {"quality": 100} if kind == "JPEG" else {}
    found = numbers(decode.decode_image(encoded(image, kind, icc_profile=GREY_INKS, **options)).image)
    assert np.abs(found[8, [4, 28]] - [[119] * 3, [255] * 3]).max() <= 2  # 119: of lightness 50


def test_srgb_is_skipped() -> None:
    assert not colour.changes_colours(SRGB)
    assert not colour.changes_colours(SRGB, "RGBA")
    assert colour.changes_colours(WIDE)
    data = encoded(picture(), "PNG", icc_profile=SRGB)
    assert_close(decode.decode_image(data).image, picture(), 0)


@pytest.mark.parametrize(
    "broken",
    [b"", b"x", bytes(500), SRGB[:200], SRGB[:128] + bytes(len(SRGB) - 128), WIDE[:-30], b"\xff" * 5000],
    ids=["empty", "short", "zeros", "cut", "no tags", "cut tags", "ones"],
)
def test_broken_profiles_are_ignored(broken: bytes) -> None:
    for mode in ("RGB", "L", "CMYK"):
        image = picture().convert(mode)
        data = encoded(image, "TIFF", icc_profile=broken)
        assert_close(decode.decode_image(data).image, image.convert("RGB"), 0)


def test_profiles_of_another_mode_are_ignored() -> None:
    image = picture().convert("CMYK")
    for chosen in (WIDE, LINEAR_GREY):
        data = encoded(image, "TIFF", icc_profile=chosen)
        assert_close(decode.decode_image(data).image, image.convert("RGB"), 0)
    assert_close(decode.decode_image(encoded(picture(), "PNG", icc_profile=LINEAR_GREY)).image, picture(), 0)


def test_callers_images_become_srgb() -> None:
    data = encoded(in_prophoto(picture()), "PNG", icc_profile=WIDE)
    with Image.open(io.BytesIO(data)) as image:
        assert_close(decode.from_pil(image), decode.decode_image(data).image, 0)
        assert_close(decode.from_pil(image.copy()), decode.decode_image(data).image, 0)


def test_threads_share_a_conversion() -> None:
    data = encoded(in_prophoto(picture(200, 100)), "PNG", icc_profile=WIDE)
    expected = decode.decode_image(data).image.tobytes()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: decode.decode_image(data).image.tobytes(), range(64)))
    assert set(found) == {expected}
