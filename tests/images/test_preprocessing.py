"""Preprocessing: resize and centre crop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from simsearch.errors import WeightsError
from simsearch.images.preprocessing import FILTERS, Preprocessing, centre_crop, shorter_side
from tests.helpers.encoded import RED

# In a program that does not turn warnings into errors, what Pillow only warns of is no reason to give a file up.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


# -- what the network sees


def test_recipe_scales_short_side_cuts_centre() -> None:
    image = Image.new("RGB", (90, 30), "blue")
    image.paste((255, 0, 0), (30, 0, 60, 30))
    pixels = Preprocessing(resize=10, crop=10).pixels(image)
    assert pixels.shape == (10, 10, 3)
    assert pixels[:, 1:-1].reshape(-1, 3).tolist() == [list(RED)] * 80


@pytest.mark.parametrize("size", [(20_000, 10), (10, 20_000), (5000, 1), (1, 5000), (1, 1), (65, 1)])
def test_recipe_takes_panorama_middle_only(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.new("RGB", size, "blue")
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    image.paste((255, 0, 0), (left - 2 * side, top - 2 * side, left + 3 * side, top + 3 * side))
    resize, scaled = Image.Image.resize, []

    def recorded(self: Image.Image, size: tuple[int, int], *arguments: Any, **options: Any) -> Image.Image:
        scaled.append(size)
        return resize(self, size, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", recorded)
    pixels = Preprocessing(resize=16, crop=16).pixels(image)
    assert pixels.shape == (16, 16, 3)
    assert (pixels == RED).all()
    assert all(max(size) <= 64 * 16 for size in scaled)


def test_recipe_refuses_what_it_cannot_do() -> None:
    with pytest.raises(WeightsError, match="crop 21 is not from 1 to 20, which is twice resize"):
        Preprocessing(resize=10, crop=21)
    with pytest.raises(WeightsError, match="'nearest' is not one of bilinear"):
        Preprocessing(interpolation="nearest")
    with pytest.raises(WeightsError, match="unknown key 'flip'"):
        Preprocessing.from_dict({"flip": True})


def test_recipe_survives_json() -> None:
    recipe = Preprocessing(resize=10, crop=9, mean=(1.0, 2.0, 3.0))
    assert (
        Preprocessing.from_dict({key: list(v) if isinstance(v, tuple) else v for key, v in recipe.to_dict().items()})
        == recipe
    )


@pytest.mark.parametrize(
    "size", [(400, 533), (533, 400), (146, 200), (147, 146), (128, 128), (1000, 31), (4000, 60), (20_000, 10)]
)
@pytest.mark.parametrize(("resize", "crop"), [(146, 128), (256, 224), (32, 32), (28, 32)])
def test_scaling_centre_is_scaling_then_cutting(size: tuple[int, int], resize: int, crop: int) -> None:
    array = np.random.default_rng(sum(size)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(array)
    whole = centre_crop(shorter_side(image, resize, FILTERS["bilinear"]), crop)
    part = Preprocessing(resize, crop).pixels(image)
    assert part.shape == whole.shape
    assert np.abs(part.astype(int) - whole.astype(int)).max() <= 1
