"""JPEG files whose end is missing, or hidden by padding."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simsearch.errors import ImageError
from simsearch.images import decode
from tests.helpers.encoded import assert_close, encoded, error, picture

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

KINDS: list[dict[str, Any]] = [
    {},
    {"progressive": True},
    {"subsampling": 0},
    {"subsampling": 2, "progressive": True},
    {"restart_marker_rows": 1},
    {"restart_marker_blocks": 1},
]


def photo(mode: str = "RGB") -> Image.Image:
    """A picture with detail everywhere, so that its bytes are spread evenly."""
    noise = np.random.default_rng(0).integers(0, 64, (160, 240, 1), dtype=np.uint8)
    return Image.fromarray((np.asarray(picture(240, 160)) // 2 + noise).astype(np.uint8)).convert(mode)


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_missing_end_marker(mode: str, options: dict[str, Any]) -> None:
    whole = encoded(photo(mode), "JPEG", quality=90, **options)
    expected = decode.decode_image(whole).image
    for data in (whole[:-2], whole[:-1], whole[:-2] + bytes(3000), whole + bytes(3000), whole[:-2] + b"\xff"):
        assert_close(decode.decode_image(data).image, expected, 0)
    assert_close(decode.decode_image(io.BytesIO(whole[:-2])).image, expected, 0)
    small = decode.decode_image(whole[:-2], 20)
    assert small.image.size == decode.decode_image(whole, 20).image.size
    assert (small.width, small.height) == (240, 160)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_few_missing_bytes(options: dict[str, Any]) -> None:
    whole = encoded(photo(), "JPEG", quality=90, **options)
    expected = decode.decode_image(whole).image
    for data in (whole[:-8], whole[:-8] + bytes(100)):
        assert_close(decode.decode_image(data).image, expected, 1)


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
def test_truncated_pictures_are_refused(share: float, options: dict[str, Any]) -> None:
    whole = encoded(photo(), "JPEG", quality=90, **options)
    end = int(len(whole) * (1 - share))
    for data in (whole[:end], whole[:end] + bytes(len(whole) - end)):
        assert error(data) == "the file is truncated: a part of its image data is missing"


def test_every_cut_is_refused_or_whole() -> None:
    for options in KINDS:
        whole = encoded(photo(), "JPEG", quality=90, **options)
        expected = decode.decode_image(whole).image
        for end in np.linspace(2, len(whole) - 1, 40, dtype=int):
            try:
                found = decode.decode_image(whole[:end]).image
            except ImageError:
                continue
            assert_close(found, expected, 2)


def test_missing_end_keeps_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = photo().transpose(Image.Transpose.ROTATE_90)
    data = encoded(stored, "JPEG", quality=95, subsampling=0, exif=exif)
    assert_close(decode.decode_image(data[:-2]).image, decode.decode_image(data).image, 0)


def test_inks_are_inverted_once() -> None:
    cmyk = picture().convert("CMYK")
    for options in ({}, {"quality": 95}):
        assert_close(decode.decode_image(encoded(cmyk, "JPEG", **options)).image, cmyk.convert("RGB"), 6)
