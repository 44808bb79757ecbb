"""One training job: its sources, network, configuration and output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simsearch.errors import UsageError
from simsearch.models import registry
from simsearch.training.config import PRESETS, TrainConfig, settings

SIDES = {"alexnet": (63, 1024), "lenet5": (32, 32), "convnet4": (15, 1024)}

"""Least and largest side of each network's input, in pixels."""

FREEZE = ("none", "convolutions", "features")


@dataclass(frozen=True)
class TrainingJob:
    """What to train on what.

    sources: with labels; classes of the same name are one. validation: sources for it; without any, `held_out` of the
    images of each class. start: weights to begin with, a file or a model's name; its classifier is replaced unless the
    classes are the same. freeze: the part of the network that stays as it is. names: of the classes, by label.
    """

    sources: Sequence[str]
    output: Path
    config: TrainConfig
    architecture: str = "alexnet"
    validation: Sequence[str] = ()
    held_out: float = 0.1
    start: str | None = None
    freeze: str = "none"
    names: Mapping[str, str] | None = None
    exclude: Sequence[str] = ()
    device: str = "auto"
    resume: bool = False
    overwrite: bool = False

    def beside(self, extension: str) -> Path:
        """The file of this training with another extension."""
        return self.output.with_suffix(extension)


def prepare_job(
    sources: Sequence[str],
    output: Path,
    *,
    architecture: str | None = None,
    preset: str | None = None,
    changes: Sequence[str] = (),
    epochs: int | None = None,
    objective: str | None = None,
    start: str | None = None,
    **rest: Any,
) -> TrainingJob:
    """A job from a preset's name and `key=value` changes of it; network and input size are those of `start`, if given.

    start: "default" stands for the default model. rest: the other fields of `Job`. Raises UsageError.
    """
    start = registry.DEFAULT if start == "default" else start
    card = registry.find_weights(start).card if start else None
    architecture = architecture or (card.architecture if card else "alexnet")
    if architecture not in PRESETS:
        raise UsageError(f"no network is called {architecture!r}", hint=f"one of {', '.join(PRESETS)}")
    given = [] if card is None else [f"image_size={card.arguments.get('image_size', 224)}"]
    given += [] if epochs is None else [f"epochs={epochs}"]
    given += [] if objective is None else [f"objective={objective}"]
    config = settings(architecture, preset, [*given, *changes])
    return TrainingJob(tuple(sources), Path(output), config, architecture, start=start, **rest)


def read_names(path: Path) -> dict[str, str]:
    """Names by label, from lines of label, tab, name. Raises UsageError."""
    try:
        lines = [line.split("\t") for line in path.read_text("utf-8").splitlines() if line.strip()]
        return {label: name.strip() for label, name in lines}
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not a table of label, tab, name") from error


def check_image_size(job: TrainingJob) -> None:
    least, most = SIDES[job.architecture]
    if not least <= job.config.image_size <= most:
        hint = f"--set image_size={least}" + (" or more" if most > least else "")
        raise UsageError(f"{job.architecture} cannot take {job.config.image_size} pixels", hint=hint)
