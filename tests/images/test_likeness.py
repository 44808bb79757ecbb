"""Copies are told from pictures that are only alike by their pixels."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from simsearch.images import likeness, perturb
from simsearch.images.samples import generate


def scene(seed: int, details: int | None = None, size: tuple[int, int] = (240, 180)) -> Image.Image:
    """A picture of coarse shapes with details on them. details: another seed for those alone."""
    coarse = np.random.default_rng(seed).integers(40, 216, (6, 8, 3)).astype(np.uint8)
    fine = np.random.default_rng(seed if details is None else details).normal(0, 14, (45, 60, 1))
    shapes = np.asarray(Image.fromarray(coarse).resize((60, 45), Image.Resampling.BICUBIC), np.float32)
    pixels = np.clip(shapes + fine, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def agree(first: Image.Image, second: Image.Image) -> bool:
    views = [likeness.view(image)[None] for image in (first, second)]
    return bool(likeness.are_copies(*views)[0])


def cropped(image: Image.Image) -> Image.Image:
    return image.crop((12, 0, image.width, image.height - 9))


def turned_and_saved(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.transpose(Image.Transpose.ROTATE_270).save(buffer, "JPEG", quality=60)
    return Image.open(buffer).convert("RGB")


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    **perturb.COPIES,
    "cropped at two sides": cropped,
    "turned and saved": turned_and_saved,
    "stretched": lambda image: image.resize((200, 200)),
    "paler": lambda image: ImageEnhance.Contrast(image).enhance(0.8),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_agree(name: str) -> None:
    for seed in range(4):
        assert agree(scene(seed), COPIES[name](scene(seed)))


def test_other_details_are_no_copy() -> None:
    for seed in range(8):
        assert not agree(scene(seed), scene(seed, details=100 + seed))


def test_other_pictures_are_no_copies() -> None:
    views = np.stack([likeness.view(scene(seed)) for seed in range(20)])
    first, second = np.triu_indices(20, 1)
    assert not likeness.are_copies(views[first], views[second]).any()


def test_a_mirrored_view_of_the_same_kind_is_no_copy() -> None:
    """Smooth sunsets whose suns and hills lie nearly at mirrored places: drawn for `simsearch sample photos`."""
    first, second = (generate.draw("sunset", number) for number in (2, 16))
    assert not agree(first, second)


def test_other_colours_are_no_copy() -> None:
    image = scene(1)
    red, green, blue = image.split()
    assert not agree(image, Image.merge("RGB", (blue, green, red)))


def test_negative_is_no_copy() -> None:
    assert not agree(scene(2), ImageOps.invert(scene(2)))


def test_half_of_a_picture_is_no_copy() -> None:
    assert not agree(scene(3), scene(3).crop((0, 0, 120, 90)))


def test_plain_pictures() -> None:
    """What has no details is told by its colour."""
    grey, red = Image.new("RGB", (90, 60), (128, 128, 128)), Image.new("RGB", (90, 60), (200, 60, 60))
    assert agree(grey, grey.resize((50, 40)))
    assert agree(red, ImageEnhance.Brightness(red).enhance(0.97))
    assert not agree(grey, red)


def test_small_pictures_are_enlarged() -> None:
    assert agree(scene(4, size=(40, 30)), scene(4, size=(30, 22)))


def test_no_pairs() -> None:
    none = np.zeros((0, likeness.SIDE, likeness.SIDE, 3), np.uint8)
    assert likeness.are_copies(none, none).shape == (0,)
