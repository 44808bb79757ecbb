"""From labelled sources to a weights file: what `simsearch train` does.

Beside the weights FILE.safetensors stand FILE.jsonl, the log, FILE.png, its curve, and while the training is not done
FILE.checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from simsearch import augment, calibration, models, pictures, ranges, trainset
from simsearch.augment import Colour
from simsearch.errors import SimsearchError, UsageError
from simsearch.files import write_atomically
from simsearch.metrics import Base, retrieval
from simsearch.models import networks, weights
from simsearch.models.runtime import choose_device
from simsearch.models.tables import LENET5_INPUT
from simsearch.presets import PRESETS, TrainConfig, settings
from simsearch.pruning import BITS, compressed
from simsearch.recipe import Recipe
from simsearch.train import accuracy, train
from simsearch.world import World

if TYPE_CHECKING:
    from simsearch.models.network import Network
    from simsearch.trainset import TrainingSet

SIDES = {"alexnet": (63, 1024), "lenet5": (32, 32), "convnet4": (15, 1024)}
"""Least and largest side of each network's input, in pixels."""

FREEZE = ("none", "convolutions", "features")


@dataclass(frozen=True)
class Job:
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


@dataclass(frozen=True)
class Outcome:
    """What a training left. metrics: by what they were measured on. seconds: of training, all runs together."""

    output: Path
    images: int
    classes: int
    metrics: dict[str, dict[str, float]]
    seconds: float
    bytes: int


def prepare(
    sources: Sequence[str], output: Path, *, architecture: str | None = None, preset: str | None = None,
    changes: Sequence[str] = (), epochs: int | None = None, objective: str | None = None, start: str | None = None,
    **rest: Any,
) -> Job:  # fmt: skip
    """A job from a preset's name and `key=value` changes of it; network and input size are those of `start`, if given.

    start: "default" stands for the default model. rest: the other fields of `Job`. Raises UsageError.
    """
    start = models.DEFAULT if start == "default" else start
    card = models.find(start).card if start else None
    architecture = architecture or (card.architecture if card else "alexnet")
    if architecture not in PRESETS:
        raise UsageError(f"no network is called {architecture!r}", hint=f"one of {', '.join(PRESETS)}")
    given = [] if card is None else [f"image_size={card.arguments.get('image_size', 224)}"]
    given += [] if epochs is None else [f"epochs={epochs}"]
    given += [] if objective is None else [f"objective={objective}"]
    config = settings(architecture, preset, [*given, *changes])
    return Job(tuple(sources), Path(output), config, architecture, start=start, **rest)


def read_names(path: Path) -> dict[str, str]:
    """Names by label, from lines of label, tab, name. Raises UsageError."""
    try:
        lines = [line.split("\t") for line in path.read_text("utf-8").splitlines() if line.strip()]
        return {label: name.strip() for label, name in lines}
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not a table of label, tab, name") from error


def fit(
    job: Job,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    log: Callable[[dict[str, Any]], None] = lambda row: None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Trains a network and writes its weights. Raises UsageError for what cannot be trained, and
    `TrainingInterruptedError` when `stop` turned true; the checkpoint then continues with `resume`."""
    _check_output(job)
    device = _device(job.device)
    world = World.join(device)
    if world.rank:  # what there is to say, the first process says
        log = _silent
    start = models.find(job.start) if job.start else None
    if world.rank:
        world.wait()  # until the first process has decoded
    data, validation, recipe = gather(job, start, progress, log)
    if not world.rank:
        world.wait()
    colour = colour_of(job.architecture, data, start)
    recipe = replace(recipe, mean=_three(colour.mean), deviation=_three(colour.deviation))
    torch.manual_seed(job.config.seed)
    network, arguments = build(job, data.classes, start)
    checkpoint = job.beside(".checkpoint")
    journal = Journal(job.beside(".jsonl") if not world.rank else None, job.resume and checkpoint.exists(), log)
    facts = {"architecture": job.architecture, "classes": list(data.classes), "images": len(data),
             "start": start.sha256 if start else None, "freeze": job.freeze}  # fmt: skip
    try:
        seconds = train(
            data, network, job.config, checkpoint, colour, validation=validation, device=device, resume=job.resume,
            facts=facts, log=journal, stop=stop,
        )  # fmt: skip
    except BaseException:
        with contextlib.suppress(SimsearchError, OSError):  # whatever ended the training is what is to be told
            journal.draw(job.beside(".png"))
        raise
    journal.draw(job.beside(".png"))
    card = weights.Card(job.architecture, arguments, recipe, _named(job, data.classes), labels=data.classes)
    card = replace(card, training=_story(job, data, validation, start, seconds))
    outcome = Outcome(job.output, len(data), len(data.classes), {}, seconds, 0)
    if not world.rank:
        checks = {"validation": validation} if validation else {"training images": data.select(_some(len(data)))}
        compress = _compresses(job.config)
        metrics = publish(network, card, job.output, checks, colour, compress=compress, trained_on=data)
        checkpoint.unlink(missing_ok=True)
        outcome = replace(outcome, metrics=metrics, bytes=job.output.stat().st_size)
    world.leave()
    return outcome


def gather(
    job: Job, start: models.WeightsFile | None, progress: Callable[[int, int], None],
    log: Callable[[dict[str, Any]], None],
) -> tuple[TrainingSet, TrainingSet | None, Recipe]:  # fmt: skip
    """Lists and decodes what to train on and what to validate on."""
    recipe = start.card.recipe if start else recipe_for(job.architecture, job.config.image_size)
    found = trainset.labelled(job.sources, job.exclude)
    classes = tuple(sorted({picture.label for picture in found}))
    if len(classes) < 2:
        raise UsageError(f"all images have the label {classes[0]!r}; there is nothing to tell apart")
    data, failures = trainset.load(found, recipe, classes, progress)
    validation = None
    if job.validation:
        others = trainset.labelled(job.validation, job.exclude)
        known = [picture for picture in others if picture.label in set(classes)]
        if not known:
            raise UsageError(f"no class of {', '.join(job.validation)} is one of those to train")
        if len(known) < len(others):
            _note(log, f"{len(others) - len(known):,} validation images of unknown classes were left out")
        validation, more = trainset.load(known, recipe, classes, progress)
        failures = [*failures, *more]
    elif job.held_out:
        rows, held = trainset.split(data.labels, job.held_out, job.config.seed)
        data, validation = data.select(rows), data.select(held) if len(held) else None
    for path, reason in failures[:5]:
        _note(log, f"left out: {path}: {reason}")
    if len(failures) > 5:
        _note(log, f"left out: {len(failures) - 5:,} more images that cannot be decoded")
    alone = int((np.bincount(data.labels, minlength=len(classes)) == 1).sum())
    if alone:
        _note(log, f"{alone:,} of {len(classes):,} classes have one image; it is trained on and not held out")
    if validation is None and job.config.schedule == "plateau":
        _note(log, "there is no validation set, so the learning rate will not fall")
    return data, validation, recipe


def recipe_for(architecture: str, image_size: int) -> Recipe:
    """How pictures become the input of a network: in the paper's proportion, 256 pixels for 224."""
    if architecture == "lenet5":
        return Recipe(28, 32)
    if architecture == "convnet4":
        return Recipe(image_size, image_size)
    return Recipe(round(image_size * 256 / 224), image_size)


def colour_of(architecture: str, data: TrainingSet, start: models.WeightsFile | None = None) -> Colour:
    """The statistics that normalise the input: LeNet-5's fixed ones, those of the weights to start from, or the
    training pixels' own."""
    if architecture == "lenet5":
        return Colour.fixed(*LENET5_INPUT)
    own = Colour.of(data.pixels)
    if start is None:
        return own
    recipe = start.card.recipe
    return Colour(torch.tensor(recipe.mean), torch.tensor(recipe.deviation), own.axes)


def build(job: Job, classes: tuple[str, ...], start: models.WeightsFile | None) -> tuple[Network, dict[str, Any]]:
    """The network to train, and the arguments of its configuration."""
    kind = models.ARCHITECTURES[job.architecture]
    arguments = dict(start.card.arguments) if start else {"image_size": job.config.image_size}
    arguments["num_classes"] = len(classes)
    if start and start.card.architecture != job.architecture:
        raise UsageError(
            f"{job.start} is of architecture {start.card.architecture}, not {job.architecture}",
            hint=f"--model {start.card.architecture}",
        )
    if start and arguments["image_size"] != job.config.image_size:
        size = arguments["image_size"]
        raise UsageError(
            f"{job.start} takes {size} pixels, not {job.config.image_size}", hint=f"--set image_size={size}"
        )
    _check_side(job)
    network = networks.make(job.architecture, kind(**arguments))
    if job.config.gain:
        network.initialise(job.config.gain)
    if start:
        same = classes in (start.card.labels, start.card.classes)
        tensors = {name: torch.from_numpy(value) for name, value in weights.read_tensors(start.path).items()}
        if not same:
            tensors = {name: value for name, value in tensors.items() if not name.startswith("classifier.")}
        network.load_state_dict(tensors, strict=same)
    if job.freeze != "none":
        for name, layer in network.named_modules():
            inside = not name.startswith("classifier")
            if inside and (job.freeze == "features" or isinstance(layer, nn.Conv2d)):
                for parameter in layer.parameters(recurse=False):
                    parameter.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in network.parameters()):
            raise UsageError(f"with its {job.freeze} frozen, nothing of {job.architecture} is left to train")
    return network, arguments


@torch.no_grad()
def publish(
    network: Network, card: weights.Card, output: Path, checks: Mapping[str, TrainingSet], colour: Colour,
    *, compress: bool, trained_on: TrainingSet | None = None,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Writes the weights, reads them back, and measures what was read; the figures go into the card.

    checks: what to measure on, by name. compress: prune, share and Huffman-code (see `models.compress`). trained_on: on
    some of these, the ranges that the 8-bit engine needs.
    """
    network = network.cpu().eval()
    tensors = {name: value.detach().float().numpy() for name, value in network.state_dict().items()}
    bits = {name: BITS[name.split(".")[0]] for name in tensors if compress and compressed(name)}
    weights.write(output, card, tensors, bits)
    decoded = weights.read_tensors(output)
    network.load_state_dict({name: torch.from_numpy(value) for name, value in decoded.items()})
    metrics: dict[str, dict[str, float]] = {}
    distances: tuple[float, ...] = card.distances
    for number, (name, data) in enumerate(checks.items()):
        scores = accuracy(network, data, colour)
        features = features_of(network, data.select(_some(len(data))), colour)
        labels = data.labels[_some(len(data))]
        found = retrieval(Base(features, labels))
        metrics[name] = dict(scores)
        if np.bincount(labels).mean() > 6:  # of fewer images a label, six nearest cannot all carry it
            metrics[name] |= {"P@6": float(found["P@6"].mean()), "mAP": float(np.nanmean(found["AP"]))}
        if not number:
            distances = calibration.quantiles(features[:512].astype(np.float16))
    total = sum(value.size for value in decoded.values())
    kept = sum(np.count_nonzero(value) for value in decoded.values())
    shown = {name: ", ".join(metric(*pair) for pair in scores.items()) for name, scores in metrics.items()}
    training = {**card.training, **({"weights kept": f"{kept / total:.1%} of {total:,}"} if compress else {})}
    card = replace(card, metrics={**shown, **card.metrics}, distances=distances, training=training)
    weights.write(output, card, tensors, bits)
    if trained_on is not None and card.architecture == "alexnet" and len(trained_on) >= ranges.LEAST:
        some = trained_on.select(_some(len(trained_on), ranges.MOST))
        ranges.add(output, _centres(some, card.recipe.crop))
    return metrics


def _centres(data: TrainingSet, side: int) -> np.ndarray[Any, Any]:
    """(N, side, side, 3) uint8, the centres of all pictures."""
    edge = (data.pixels.shape[1] - side) // 2
    return np.ascontiguousarray(data.pixels[:][:, edge : edge + side, edge : edge + side])


@torch.no_grad()
def features_of(network: Network, data: TrainingSet, colour: Colour, batch_size: int = 256) -> np.ndarray[Any, Any]:
    """(N, D) float32 features of the centre patches."""
    network.eval()
    device = next(network.parameters()).device
    colour, rows = colour.to(device), []
    for start in range(0, len(data), batch_size):
        pixels = torch.from_numpy(np.ascontiguousarray(data.pixels[start : start + batch_size])).to(device)
        rows.append(network.features(augment.centre(pixels, network.config.image_size, colour)).float().cpu().numpy())
    return np.concatenate(rows)


class Journal:
    """The log: each row goes on to the caller and, in the process that writes, into a file of JSON lines."""

    def __init__(self, path: Path | None, resumed: bool, log: Callable[[dict[str, Any]], None]) -> None:
        self.path, self.log = path, log
        self.rows: list[dict[str, Any]] = []
        if path and path.exists() and resumed:
            self.rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        elif path:
            path.write_text("")

    def __call__(self, row: dict[str, Any]) -> None:
        if self.path is None:
            return
        self.log(row)
        if row["event"] == "resume":  # what came after the checkpoint comes again
            self.rows = [old for old in self.rows if old.get("step", 0) <= row["step"]]
            self.path.write_text("".join(json.dumps(old) + "\n" for old in self.rows))
            return
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def draw(self, path: Path) -> None:
        """Writes the curve."""
        if self.path is not None and self.rows:
            write_atomically(path, pictures.png(pictures.curve(self.rows)))


def _check_side(job: Job) -> None:
    least, most = SIDES[job.architecture]
    if not least <= job.config.image_size <= most:
        hint = f"--set image_size={least}" + (" or more" if most > least else "")
        raise UsageError(f"{job.architecture} cannot take {job.config.image_size} pixels", hint=hint)


def _check_output(job: Job) -> None:
    if job.output.suffix != ".safetensors":
        raise UsageError(f"{job.output} would hold weights", hint=f"{job.output.with_suffix('.safetensors')}")
    if not job.output.absolute().parent.is_dir():
        raise UsageError(f"{job.output} cannot be written: its folder does not exist")
    if not 0 <= job.held_out < 1:
        raise UsageError(f"{job.held_out} is no share to hold out", hint="0 or more and less than 1")
    if job.freeze not in FREEZE:
        raise UsageError(f"freeze is {job.freeze!r}", hint=f"one of {', '.join(FREEZE)}")
    if job.beside(".checkpoint").exists() and not (job.resume or job.overwrite):
        hint = "--resume continues, --overwrite starts over"
        raise UsageError(f"a training was left at {job.beside('.checkpoint')}", hint=hint)
    if job.output.exists() and not (job.overwrite or (job.resume and job.beside(".checkpoint").exists())):
        raise UsageError(f"{job.output} exists already", hint="--overwrite replaces it")


def _device(name: str) -> torch.device:
    chosen = choose_device(name)
    processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if processes > 1 and chosen.startswith("cuda:"):
        raise UsageError(
            f"{processes} processes cannot share {chosen}", hint="--device cuda gives each a GPU of its own"
        )
    if processes > 1 and chosen == "cuda" and processes > gpus:
        hint = f"torchrun --nproc-per-node {gpus}, or --device cpu"
        raise UsageError(f"{processes} processes want a GPU each, and there are {gpus}", hint=hint)
    if chosen == "cuda" and "LOCAL_RANK" in os.environ:
        chosen = f"cuda:{os.environ['LOCAL_RANK']}"
    device = torch.device(chosen)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def _three(values: torch.Tensor) -> tuple[float, float, float]:
    red, green, blue = values.tolist()
    return red, green, blue


def _named(job: Job, classes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple((job.names or {}).get(label, label) for label in classes)


def _compresses(config: TrainConfig) -> bool:
    return min(config.keep_convolution, config.keep_hidden, config.keep_classifier, config.share_from) < 1


def _some(count: int, most: int = 4096) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Up to `most` rows, spread evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def _story(
    job: Job, data: TrainingSet, validation: TrainingSet | None, start: models.WeightsFile | None, seconds: float
) -> dict[str, Any]:
    held = f", {len(validation):,} to validate on" if validation is not None else ""
    story = {"data": f"{len(data):,} images of {len(data.classes):,} classes{held}",
             "passes": job.config.epochs, "minutes": round(seconds / 60, 1),
             "settings": asdict(job.config)}  # fmt: skip
    return {**story, **({"from": start.sha256} if start else {})}


def metric(name: str, value: float) -> str:
    """A figure as it is shown."""
    shown = {"top1": "top-1", "top5": "top-5"}.get(name)
    return f"{shown} {value:.1%}" if shown else f"{name} {value:.3f}"


def _silent(row: dict[str, Any]) -> None:
    """A log that nobody reads."""


def _note(log: Callable[[dict[str, Any]], None], text: str) -> None:
    log({"event": "note", "text": text})
