"""Classification by a model, optionally averaged over ten patches (Krizhevsky et al. 2012, section 4.1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.errors import UsageError
from simsearch.images.preprocessing import FILTERS, centre_crop, shorter_side
from simsearch.images.sources import resolve

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from simsearch.images.preprocessing import Preprocessing

BATCH = 32
"""Number of pictures classified at once, and number of patches computed at once."""


@dataclass(frozen=True)
class Guess:
    """A class and the model's probability for it, in [0, 1]."""

    label: str
    probability: float


def patches(image: Image.Image, recipe: Preprocessing, crops: int) -> NDArray[np.uint8]:
    """Returns the patches of an image that the network classifies: (crops, S, S, 3) uint8.

    crops: 1 for the centre of the scaled image. 10 for five patches of the scaled image's middle square (four corners
    and centre) and their mirror images (Krizhevsky et al. 2012, section 4.1).
    """
    if crops == 1:
        return recipe.pixels(image)[None]
    side, small = max(recipe.resize, recipe.crop), recipe.crop
    square = centre_crop(shorter_side(image, recipe.resize, FILTERS[recipe.interpolation]), side)
    end, middle = side - small, (side - small) // 2
    corners = ((0, 0), (0, end), (end, 0), (end, end), (middle, middle))
    five = np.stack([square[y : y + small, x : x + small] for y, x in corners])
    return np.concatenate([five, five[:, :, ::-1]])


def probabilities(model: Any, images: Sequence[Image.Image], crops: int = 1) -> NDArray[np.float64]:
    """Returns the probabilities of C classes for n images, (n, C): the softmax, averaged over an image's patches."""
    pixels = np.concatenate([patches(image, model.recipe, crops) for image in images])
    logits = np.concatenate([model.logits(pixels[i : i + BATCH]) for i in range(0, len(pixels), BATCH)])
    shifted = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    softmax = shifted / shifted.sum(1, keepdims=True)
    mean: NDArray[np.float64] = softmax.reshape(len(images), -1, softmax.shape[1]).mean(1)
    return mean


def check_classes(model: Any) -> tuple[str, ...]:
    """Returns the names of the model's classes. Raises UsageError for a model without classes."""
    classes: tuple[str, ...] = getattr(model, "classes", ())
    if not classes or not hasattr(model, "logits"):
        raise UsageError(
            f"model {model.name} has no classes to choose from",
            hint="use a model that was trained with labels",
            shell_hint="use a model trained by `simsearch train`",
        )
    return classes


def classify(model: Any, pictures: Sequence[Any], k: int = 5, crops: int = 1) -> Iterator[list[Guess]]:
    """Yields the k most probable classes of each picture, the most probable first.

    pictures: paths, bytes, PIL images or arrays. crops: the number of patches of each picture, 1 or 10; see `patches`.
    Raises UsageError for a model without classes, ImageError for a picture that cannot be read.
    """
    classes = check_classes(model)
    for start in range(0, len(pictures), BATCH):
        images = [resolve.open_picture(p, model.recipe.resize).image for p in pictures[start : start + BATCH]]
        for row in probabilities(model, images, crops):
            best = np.argsort(-row, kind="stable")[:k]
            yield [Guess(classes[number], float(row[number])) for number in best]
