"""How good a model is: its guesses on labelled pictures, and its features as a ground for retrieval.

Krizhevsky et al. 2012, section 4.1 (the average over ten patches at test time) and section 6 (top-1 and top-5 error).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common.intervals import Interval
from simsearch.errors import ImageError, UsageError
from simsearch.images.preprocessing import FILTERS, centre_crop, shorter_side
from simsearch.images.sources import resolve

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from simsearch.images.preprocessing import Preprocessing
    from simsearch.images.sources.labelled import LabelledImage

BATCH = 32


@dataclass(frozen=True)
class Guess:
    """A class and the model's probability for it, in [0, 1]."""

    label: str
    probability: float


@dataclass(frozen=True)
class ClassificationReport:
    """Top-1 and top-5 error over `images` pictures. unknown: pictures of classes that the model was not trained on."""

    model: str
    crops: int
    images: int
    unknown: int
    failed: int
    top1_error: Interval
    top5_error: Interval

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def patches(image: Image.Image, recipe: Preprocessing, crops: int) -> NDArray[np.uint8]:
    """What the network looks at: (1, S, S, 3) the centre, or (10, S, S, 3) the four corners and the centre of the
    scaled image's middle square, and their reflections (section 4.1). uint8."""
    if crops == 1:
        return recipe.pixels(image)[None]
    side, small = max(recipe.resize, recipe.crop), recipe.crop
    square = centre_crop(shorter_side(image, recipe.resize, FILTERS[recipe.interpolation]), side)
    end, middle = side - small, (side - small) // 2
    corners = ((0, 0), (0, end), (end, 0), (end, end), (middle, middle))
    five = np.stack([square[y : y + small, x : x + small] for y, x in corners])
    return np.concatenate([five, five[:, :, ::-1]])


def probabilities(model: Any, images: Sequence[Image.Image], crops: int = 1) -> NDArray[np.float64]:
    """(n, C): the softmax over the classes, averaged over the patches of each image."""
    pixels = np.concatenate([patches(image, model.recipe, crops) for image in images])
    logits = np.concatenate([model.logits(pixels[i : i + BATCH]) for i in range(0, len(pixels), BATCH)])
    shifted = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    softmax = shifted / shifted.sum(1, keepdims=True)
    mean: NDArray[np.float64] = softmax.reshape(len(images), -1, softmax.shape[1]).mean(1)
    return mean


def check_classes(model: Any) -> tuple[str, ...]:
    """The names of the model's classes. Raises UsageError for a model that has none."""
    classes: tuple[str, ...] = getattr(model, "classes", ())
    if not classes or not hasattr(model, "logits"):
        raise UsageError(f"model {model.name} has no classes to choose from", hint="one that `simsearch train` wrote")
    return classes


def classify(model: Any, pictures: Sequence[Any], k: int = 5, crops: int = 1) -> Iterator[list[Guess]]:
    """The k most probable classes of each picture (a path, bytes, PIL image or array), most probable first.

    Raises UsageError for a model without classes, ImageError for a picture that cannot be read.
    """
    classes = check_classes(model)
    for start in range(0, len(pictures), BATCH):
        images = [resolve.open_picture(p, model.recipe.resize).image for p in pictures[start : start + BATCH]]
        for row in probabilities(model, images, crops):
            best = np.argsort(-row, kind="stable")[:k]
            yield [Guess(classes[number], float(row[number])) for number in best]


def evaluate_classifier(
    model: Any,
    pictures: Sequence[LabelledImage],
    crops: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ClassificationReport:
    """Top-1 and top-5 error over labelled pictures. Raises UsageError where the model knows none of their classes.

    A picture's label is a class if it is the class's name, or what the class was called in the training data.
    """
    numbers = {name: number for number, name in enumerate(check_classes(model))}
    numbers = {**numbers, **{name: number for number, name in enumerate(model.labels)}}
    known = [picture for picture in pictures if picture.label in numbers]
    if not known:
        unknown = sorted({picture.label for picture in pictures})[:3]
        raise UsageError(f"none of the labels is a class of {model.name}: {', '.join(unknown)}, ...")
    seen = one = five = failed = 0
    for start in range(0, len(known), BATCH):
        images, targets = [], []
        for picture in known[start : start + BATCH]:
            try:
                images.append(resolve.open_picture(picture.source.read(picture.path), model.recipe.resize).image)
                targets.append(numbers[picture.label])
            except ImageError:
                failed += 1
        if images:
            rows = probabilities(model, images, crops)
            best = np.argsort(-rows, axis=1, kind="stable")[:, :5] == np.array(targets)[:, None]
            seen, one, five = seen + len(images), one + int(best[:, 0].sum()), five + int(best.sum())
        progress(min(start + BATCH, len(known)), len(known))
    if not seen:
        raise UsageError("none of the pictures could be decoded")
    unknown_count = len(pictures) - len(known)
    errors = Interval.of_proportion(seen - one, seen), Interval.of_proportion(seen - five, seen)
    return ClassificationReport(model.name, crops, seen, unknown_count, failed, *errors)
