"""WebP, AVIF and HEIC files whose end was never written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from simsearch.images import decode
from tests.helpers.encoded import assert_close, encoded, error, needs_heif

NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (120, 160, 3), dtype=np.uint8))


def file(kind: str, image: Image.Image = NOISE) -> bytes:
    if kind == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    options: dict[str, Any] = {"lossless": {"lossless": True}, "animated": {"save_all": True, "append_images": [NOISE]}}
    return encoded(image, kind if kind in {"AVIF", "HEIF"} else "WEBP", **options.get(kind, {}))


@pytest.mark.parametrize("kind", ["WEBP", "lossless", "animated", "AVIF", pytest.param("HEIF", marks=needs_heif)])
def test_files_that_end_with_zeros(kind: str) -> None:
    whole = file(kind)
    cut = int(len(whole) * (0.3 if kind == "animated" else 0.6))
    for longer in (0, 100_000):
        assert error(whole[:cut] + bytes(len(whole) - cut + longer)).startswith("the file is truncated")
        found = decode.decode_image(whole + bytes(longer)).image  # a whole file before the zeros
        assert_close(found, decode.decode_image(whole).image, 0)


@pytest.mark.parametrize("kind", ["WEBP", "lossless", "AVIF", pytest.param("HEIF", marks=needs_heif)])
@pytest.mark.parametrize("colour", ["white", "black", "red"])
def test_pictures_of_one_colour_are_whole(kind: str, colour: str) -> None:
    for size in ((16, 16), (470, 724), (3, 900)):
        image = Image.new("RGB", size, colour)
        assert_close(decode.decode_image(file(kind, image)).image, image, 3)
    assert decode.decode_image(encoded(Image.new("RGB", (9, 9)), "WEBP", exif=b"Exif\0\0" + bytes(900))).width == 9
