"""The error of a model on labelled pictures (Krizhevsky et al. 2012, section 6: top-1 and top-5 error)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common.intervals import Interval
from simsearch.errors import ImageError, UsageError
from simsearch.images.sources import resolve
from simsearch.models.classify import BATCH, check_classes, probabilities
from simsearch.models.training_record import MOST, TrainingRecord, digest_of

if TYPE_CHECKING:
    from simsearch.images.sources.labelled import LabelledImage


@dataclass(frozen=True)
class ClassificationReport:
    """The top-1 and top-5 error of a model on labelled pictures, as fractions with 95 % intervals.

    model: the name of the model.
    crops: the number of patches by which each picture was classified; see `simsearch.models.classify.patches`.
    images: the number of pictures measured.
    unknown: the number of pictures whose class the model was not trained on; they are left out.
    failed: the number of pictures that could not be decoded.
    trained_on: how many of the measured pictures the model was trained on; None if its weights do not record it.
    """

    model: str
    crops: int
    images: int
    unknown: int
    failed: int
    top1_error: Interval
    top5_error: Interval
    trained_on: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as a dictionary of JSON values."""
        return asdict(self)


def evaluate_classifier(
    model: Any,
    pictures: Sequence[LabelledImage],
    crops: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    record: TrainingRecord | None = None,
    held_out: bool = False,
) -> ClassificationReport:
    """Measures the top-1 and top-5 error of a model on labelled pictures.

    The class of a picture is found by the picture's label. The label may be the name of the class (`model.classes`), or
    the label that the class had in the training data (`model.labels`), such as a WordNet id.
    crops: the number of patches by which each picture is classified, 1 or 10; see `simsearch.models.classify.patches`.
    progress: called with the number of pictures done and the number of all pictures.
    record: the pictures that the model was trained on and those that were held out; see `load.training_record`.
    held_out: True to measure only the pictures that the record names as held out.
    Raises UsageError if the model has no classes, if it knows none of the labels, or if no picture can be decoded. With
    `held_out`, it is also raised if the record names no held-out pictures, or if none of `pictures` was held out.
    """
    record = record or TrainingRecord()
    if held_out and not record.held_out:
        raise UsageError(
            f"the weights of {model.name} do not record which images were held out",
            hint=f"a training run records them, unless held_out is 0 or there are more than {MOST:,} images",
            shell_hint=f"`simsearch train` records them, unless --held-out is 0 or there are more than {MOST:,} images",
        )
    numbers = {name: number for number, name in enumerate(check_classes(model))}
    numbers = {**numbers, **{name: number for number, name in enumerate(model.labels)}}
    known = [picture for picture in pictures if picture.label in numbers]
    if not known:
        unknown = sorted({picture.label for picture in pictures})[:3]
        raise UsageError(f"none of the labels is a class of {model.name}: {', '.join(unknown)}, ...")
    seen = one = five = failed = trained_on = 0
    for start in range(0, len(known), BATCH):
        images, targets = [], []
        for picture in known[start : start + BATCH]:
            try:
                data = picture.source.read(picture.path)
                digest = digest_of(data) if record else b""
                if held_out and digest not in record.held_out:
                    continue
                images.append(resolve.open_picture(data, model.recipe.resize).image)
                targets.append(numbers[picture.label])
                trained_on += digest in record.trained_on
            except ImageError:
                failed += 1
        if images:
            rows = probabilities(model, images, crops)
            best = np.argsort(-rows, axis=1, kind="stable")[:, :5] == np.array(targets)[:, None]
            seen, one, five = seen + len(images), one + int(best[:, 0].sum()), five + int(best.sum())
        progress(min(start + BATCH, len(known)), len(known))
    if not seen and held_out and not failed:
        raise UsageError(f"none of the images was held out when {model.name} was trained")
    if not seen:
        raise UsageError("none of the pictures could be decoded")
    unknown_count = len(pictures) - len(known)
    errors = Interval.of_proportion(seen - one, seen), Interval.of_proportion(seen - five, seen)
    known_of = trained_on if record else None
    return ClassificationReport(model.name, crops, seen, unknown_count, failed, *errors, known_of)
