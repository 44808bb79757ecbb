"""One training job: its sources, network, configuration and output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simsearch.common import suggestions
from simsearch.common.regular_files import open_regular
from simsearch.errors import UsageError
from simsearch.models import registry
from simsearch.training.config import PRESETS, TrainConfig, setting_hint, settings

SIDES = {"alexnet": (63, 1024), "lenet5": (32, 32), "convnet4": (15, 1024)}

"""Smallest and largest side of each network's input, in pixels."""

FREEZE = ("none", "convolutions", "features")
"""Values of `freeze`, the part that is not trained: nothing, the convolutions, or all except the classifier."""


@dataclass(frozen=True)
class TrainingJob:
    """The input, settings and output of one training.

    sources: folders, archives or tables of labelled images; equal labels in several sources are one class.
    output: the weights file to write, `.safetensors`.
    architecture: the network, a key of `config.PRESETS`.
    validation: sources to validate on. If there are none, the fraction `held_out` of each class is held out instead.
    start: weights to start from, a file or a model's name. The classifier is replaced if the classes are different.
    freeze: the part that is not trained: "none", "convolutions", or "features" (everything except the classifier).
    names: for each label, the name of its class to show. exclude: glob patterns of paths to leave out.
    resume: continue from the checkpoint if there is one. overwrite: replace existing files.
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
        """Returns the path of the output with another extension."""
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
    """Returns a training job with the settings of a preset, some of them changed.

    architecture: by default that of `start`; without `start`, AlexNet.
    preset: None for the architecture's default. epochs, objective: None for those of the preset.
    changes: `key=value` settings, which take precedence over the preset, `epochs` and `objective`.
    start: a weights file or a model's name, "default" for the default model. The input size is that of `start`. If
    `changes` has another `image_size`, `run.fit` raises UsageError.
    rest: other fields of `TrainingJob`.
    Raises UsageError for an unknown network, preset, setting or `start`, or an invalid setting; WeightsError for a
    damaged `start`.
    """
    start = registry.DEFAULT if start == "default" else start
    card = registry.find_weights(start).card if start else None
    architecture = architecture or (card.architecture if card else "alexnet")
    if architecture not in PRESETS:
        raise UsageError(f"no network is called {architecture!r}", hint=suggestions.hint(architecture, list(PRESETS)))
    given = [] if card is None else [f"image_size={card.arguments.get('image_size', 224)}"]
    given += [] if epochs is None else [f"epochs={epochs}"]
    given += [] if objective is None else [f"objective={objective}"]
    config = settings(architecture, preset, [*given, *changes])
    return TrainingJob(tuple(sources), Path(output), config, architecture, start=start, **rest)


def read_names(path: Path) -> dict[str, str]:
    """Reads a file whose lines are a label, a tab and the name of a class; returns a dict from label to name.

    Raises UsageError if the file cannot be read or has other lines.
    """
    try:
        with open_regular(path) as file:
            lines = [line.split("\t") for line in file.read().decode("utf-8").splitlines() if line.strip()]
        return {label: name.strip() for label, name in lines}
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not a table whose lines are a label, a tab and a name") from error


def check_image_size(job: TrainingJob) -> None:
    """Raises UsageError if the network cannot take images of the configured size."""
    least, most = SIDES[job.architecture]
    if not least <= job.config.image_size <= most:
        hints = setting_hint("image_size", f"{least} or more" if most > least else least)
        raise UsageError(f"{job.architecture} cannot take images of {job.config.image_size} pixels a side", **hints)


def check_output(job: TrainingJob) -> None:
    """Raises UsageError if the job's files cannot be written or must not be replaced, or if a setting is invalid."""
    if job.output.suffix != ".safetensors":
        path = job.output.with_suffix(".safetensors")
        raise UsageError(
            f"{job.output} cannot be the output: weights are written to a .safetensors file",
            hint=f'output=Path("{path}")',
            shell_hint=f"-o {path}",
        )
    if not job.output.absolute().parent.is_dir():
        raise UsageError(f"{job.output} cannot be written: its folder does not exist")
    if not 0 <= job.held_out < 1:
        raise UsageError(f"held_out is {job.held_out}, but must be at least 0 and less than 1")
    if job.freeze not in FREEZE:
        raise UsageError(f"freeze is {job.freeze!r}, which is not permitted", hint=suggestions.hint(job.freeze, FREEZE))
    if job.beside(".checkpoint").exists() and not (job.resume or job.overwrite):
        raise UsageError(
            f"an interrupted training left the checkpoint {job.beside('.checkpoint')}",
            hint="resume=True continues, overwrite=True starts over",
            shell_hint="--resume continues, --overwrite starts over",
        )
    if job.output.exists() and not (job.overwrite or (job.resume and job.beside(".checkpoint").exists())):
        raise UsageError(
            f"{job.output} exists already",
            hint="overwrite=True replaces it",
            shell_hint="--overwrite replaces it",
        )
