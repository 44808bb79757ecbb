"""Large images are decoded at a smaller scale."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simsearch.images import decode
from simsearch.images.decoding import scaled
from simsearch.images.preprocessing import Preprocessing
from simsearch.images.samples import generate
from simsearch.models import load
from tests.helpers.extract import picture

KINDS = ["RGB", "RGBA", "LA", "P", "L", "I;16", "I", "F", "CMYK", "turned"]


@pytest.mark.parametrize("kind", KINDS)
def test_large_pictures_scale_while_converting(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = Image.open(io.BytesIO(picture(5, (435, 310)))).convert("RGB")
    out, options = io.BytesIO(), dict[str, Any]()
    image = base
    if kind in {"RGBA", "LA"}:
        image = base.convert(kind)
        image.putalpha(base.convert("L").transpose(Image.Transpose.ROTATE_180))
    elif kind == "P":
        image, options = base.quantize(32), {"transparency": 3}
    elif kind in {"I;16", "I", "F"}:
        values = np.asarray(base.convert("L")).astype(np.float32) * {"I;16": 257, "I": 4001, "F": 1 / 255}[kind]
        image = Image.fromarray(values.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[kind]))
    elif kind == "turned":
        options = {"exif": Image.Exif()}
        options["exif"][0x0112] = 6
    elif kind != "RGB":
        image = base.convert(kind)
    image.save(out, "TIFF" if kind in {"I;16", "I", "F", "CMYK"} else "PNG", **options)
    whole = decode.decode_image(out.getvalue())
    monkeypatch.setattr(scaled, "LARGE_PIXELS", 4 * 435 * 9)  # bands of 9 rows and fewer
    small = decode.decode_image(out.getvalue(), 30)
    assert (small.width, small.height) == (whole.width, whole.height)
    assert small.image.mode == "RGB"
    assert min(small.image.size) == 62  # a fifth, at least twice of what is needed
    difference = np.asarray(small.image, np.int16) - np.asarray(whole.image.reduce(5), np.int16)
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "L", "I", "F", "CMYK"])
@pytest.mark.parametrize("size", [(2001, 40), (37, 1000), (4001, 21)])
@pytest.mark.parametrize("turn", [1, 3, 6])
def test_panoramas_convert_only_their_middle(
    size: tuple[int, int], kind: str, turn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Image.open(io.BytesIO(picture(5, size))).convert("RGB")
    values = np.asarray(base.convert("L")).astype(np.float32)
    if kind in {"I", "F"}:
        base = Image.fromarray((values * 4001).astype(np.int32) if kind == "I" else values / 300)
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = turn
    base.convert(kind).save(out, "TIFF", exif=exif)
    recipe = Preprocessing(30, 28)
    whole = decode.decode_image(out.getvalue())
    monkeypatch.setattr(scaled, "LARGE_PIXELS", 30_000)
    middle = decode.decode_image(out.getvalue(), 30)
    assert (middle.width, middle.height) == (whole.width, whole.height)
    lower = min(size)
    assert sorted(middle.image.size) == [lower, 8 * lower + (max(size) - 8 * lower) % 2]
    assert middle.image.mode == "RGB"
    difference = recipe.pixels(middle.image).astype(int) - recipe.pixels(whole.image)
    assert np.abs(difference).max() <= 1


def test_footprint_counts_memory_while_decoding() -> None:
    size = (1200, 800)
    assert decode.decode_memory(picture(1, size), 10) == 1200 * 800 * 4
    assert decode.decode_memory(picture(1, size, "JPEG"), 10) == 150 * 100 * 4
    assert decode.decode_memory(picture(1, size, "JPEG"), None) == 1200 * 800 * 4
    coefficients = decode.decode_memory(picture(1, size, "JPEG", progressive=True, subsampling=2), 10) - 150 * 100 * 4
    assert coefficients == 1200 * 800 * 3
    assert decode.decode_memory(b"no image") == 0
    stream = io.BytesIO(picture(1, size))
    assert decode.decode_memory(stream) == 1200 * 800 * 4
    assert stream.tell() == 0


# -- agreement


def test_scaled_decoding_agrees_with_pillow() -> None:
    """Drawn pictures of 9 megapixels, by the shipped weights; scripts/bench/decoding.py does it with photographs."""
    model = load.load_model(device="cpu", images=16)
    assert model.recipe.crop == 192
    fast, plain = [], []
    for number, kind in enumerate(list(generate.KINDS)[:16]):
        out = io.BytesIO()
        generate.draw(kind, number).resize((3520, 2640), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        small = decode.decode_image(out.getvalue(), model.recipe.resize).image
        assert small.size == (440, 330)
        fast.append(model.recipe.pixels(small))
        plain.append(model.recipe.pixels(decode.decode_image(out.getvalue()).image))
    a, b = (model.features(np.stack(pixels)).astype(np.float64) for pixels in (fast, plain))
    cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    assert cosines.min() >= 0.995
    assert np.median(cosines) >= 0.999
