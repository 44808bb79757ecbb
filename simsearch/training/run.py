"""Trains a network on labelled sources and writes its weights file: `simsearch train`.

Besides the weights (FILE.safetensors) it writes the log (FILE.jsonl), the learning curve (FILE.png) and, during the
training, a checkpoint (FILE.checkpoint).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from simsearch.errors import SimsearchError, UsageError
from simsearch.images.preprocessing import Preprocessing
from simsearch.images.sources import labelled
from simsearch.models import registry, weights
from simsearch.models.networks import build as networks_build
from simsearch.models.networks.lenet5_tables import LENET5_INPUT
from simsearch.models.onnx.runtime import choose_device
from simsearch.models.training_record import TrainingRecord
from simsearch.training import data as training_data
from simsearch.training.augment import ColourStats
from simsearch.training.config import TrainConfig, setting_hint
from simsearch.training.distributed import ProcessGroup
from simsearch.training.job import TrainingJob, check_image_size, check_output
from simsearch.training.log import TrainingLog, silent
from simsearch.training.loop import train
from simsearch.training.publish import publish, sample_rows

if TYPE_CHECKING:
    from simsearch.models.networks.base import Network
    from simsearch.training.data import TrainingSet

Log = Callable[[dict[str, Any]], None]

FEW = 10_000
"""With fewer images, AlexNet learns little if it starts from random weights (scripts/reproduce/presets.py)."""

SAMPLED = 1024
"""Largest number of pictures that the checksum of the training data covers."""


@dataclass(frozen=True)
class TrainingReport:
    """The result of a training.

    output: the weights file. images, classes: numbers of images and classes trained on.
    metrics: for the name of each image set, a dict from names of metrics to their values.
    measured: for the name of each image set, the number of its images.
    seconds: of training, in all runs together. bytes: size of the weights file.
    """

    output: Path
    images: int
    classes: int
    metrics: dict[str, dict[str, float]]
    seconds: float
    bytes: int
    measured: dict[str, int] = field(default_factory=dict)


def fit(
    job: TrainingJob,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    log: Log = lambda row: None,
    stop: Callable[[], bool] = lambda: False,
) -> TrainingReport:
    """Trains a network and writes its weights.

    progress: called with the number of images decoded so far and of all images. log: gets the rows that `loop.train`
    describes.
    stop: when it returns True, a checkpoint is written, and a job with `resume` can continue from it.
    Raises UsageError if the job cannot be done, and TrainingInterruptedError after a stop.
    """
    check_output(job)
    device = _device(job.device)
    world = ProcessGroup.join(device)
    if world.rank:  # only the first process reports
        log = silent
    start = registry.find_weights(job.start) if job.start else None
    if world.rank:
        world.wait()  # until the first process has decoded the images
    data, validation, recipe = gather(job, start, progress, log)
    if not world.rank:
        world.wait()
    colour = colour_of(job.architecture, data, start)
    recipe = replace(recipe, mean=_as_rgb(colour.mean), std=_as_rgb(colour.std))
    torch.manual_seed(job.config.seed)
    network, arguments = build(job, data.classes, start)
    checkpoint = job.beside(".checkpoint")
    journal = TrainingLog(job.beside(".jsonl") if not world.rank else None, job.resume and checkpoint.exists(), log)
    with _drawing_curve(journal, job.beside(".png")):
        seconds = train(
            data,
            network,
            job.config,
            checkpoint,
            colour,
            validation=validation,
            device=device,
            resume=job.resume,
            facts=_facts(job, data, start),
            log=journal,
            stop=stop,
        )
    card = weights.ModelCard(
        job.architecture, arguments, recipe, _display_names(job, data.classes), labels=data.classes
    )
    card = replace(card, training=_summary(job, data, validation, start, seconds))
    report = TrainingReport(job.output, len(data), len(data.classes), {}, seconds, 0)
    if not world.rank:
        checks = {"validation": validation} if validation else {"training images": data.select(sample_rows(len(data)))}
        compress = _compresses(job.config)
        record = _record(data, validation, start)
        metrics = publish(network, card, job.output, checks, colour, compress=compress, trained_on=data, record=record)
        checkpoint.unlink(missing_ok=True)
        measured = {name: len(images) for name, images in checks.items()}
        report = replace(report, metrics=metrics, measured=measured, bytes=job.output.stat().st_size)
    world.leave()
    return report


@contextlib.contextmanager
def _drawing_curve(journal: TrainingLog, path: Path) -> Iterator[None]:
    """Draws the learning curve after the training; if the training failed, errors of drawing are ignored."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(SimsearchError, OSError):
            journal.draw(path)
        raise
    journal.draw(path)


def _facts(job: TrainingJob, data: TrainingSet, start: registry.WeightsFile | None) -> dict[str, Any]:
    """Returns the values, besides the configuration, that must be the same when a checkpoint is resumed."""
    return {
        "architecture": job.architecture,
        "classes": list(data.classes),
        "images": len(data),
        **checksums(data),
        "start": start.sha256 if start else None,
        "freeze": job.freeze,
    }


def checksums(data: TrainingSet) -> dict[str, str]:
    """Returns two checksums: "labels" is of all labels, "pictures" is of up to SAMPLED evenly spaced pictures."""
    pictures = hashlib.sha256()
    rows = np.unique(np.linspace(0, len(data) - 1, SAMPLED).astype(np.int64))
    for start in range(0, len(rows), 64):
        pictures.update(np.ascontiguousarray(data.pixels[rows[start : start + 64]]).data)
    return {"pictures": pictures.hexdigest(), "labels": hashlib.sha256(data.labels.tobytes()).hexdigest()}


def gather(
    job: TrainingJob,
    start: registry.WeightsFile | None,
    progress: Callable[[int, int], None],
    log: Log,
) -> tuple[TrainingSet, TrainingSet | None, Preprocessing]:
    """Lists and decodes the images of a job; returns training set, validation set (or None) and preprocessing.

    Raises UsageError if all training images have the same label, or if no validation image has a label that a training
    image has.
    """
    recipe = start.card.recipe if start else recipe_for(job.architecture, job.config.image_size)
    images = labelled.list_labelled(job.sources, job.exclude, lambda text: _note(log, text))
    classes = tuple(sorted({image.label for image in images}))
    if len(classes) < 2:
        raise UsageError(f"all images have the label {classes[0]!r}; there is nothing to tell apart")
    data, failures = training_data.load(images, recipe, classes, progress)
    validation = None
    if job.validation:
        others = labelled.list_labelled(job.validation, job.exclude)
        known = [image for image in others if image.label in set(classes)]
        if not known:
            raise UsageError(f"no image of {', '.join(job.validation)} has a label of the training images")
        if len(known) < len(others):
            _note(log, f"{len(others) - len(known):,} validation images of unknown classes were left out")
        validation, more = training_data.load(known, recipe, classes, progress)
        failures = [*failures, *more]
    elif job.held_out:
        rows, held_out = training_data.split(data.labels, job.held_out, job.config.seed)
        data, validation = data.select(rows), data.select(held_out) if len(held_out) else None
    for path, reason in failures[:5]:
        _note(log, f"left out: {path}: {reason}")
    if len(failures) > 5:
        _note(log, f"left out: {len(failures) - 5:,} more images that cannot be decoded")
    single = int((np.bincount(data.labels, minlength=len(classes)) == 1).sum())
    if single:
        _note(log, f"{single:,} of {len(classes):,} classes have only one image, which is not held out")
    if start is None and job.architecture == "alexnet" and len(data) < FEW:
        advice = "--from alexnet --freeze convolutions --preset adapt"
        _note(log, f"{len(data):,} images are few for training from random weights; try {advice}")
    if validation is None and job.config.schedule == "plateau":
        _note(log, "there is no validation set, so the learning rate will not fall")
    return data, validation, recipe


def recipe_for(architecture: str, image_size: int) -> Preprocessing:
    """Returns a network's preprocessing. AlexNet scales images as its paper does: to 256 pixels for an input of 224."""
    if architecture == "lenet5":
        return Preprocessing(28, 32)
    if architecture == "convnet4":
        return Preprocessing(image_size, image_size)
    return Preprocessing(round(image_size * 256 / 224), image_size)


def colour_of(architecture: str, data: TrainingSet, start: registry.WeightsFile | None = None) -> ColourStats:
    """Returns the statistics that normalise the input.

    For LeNet-5, they are fixed. For other networks, they are measured on the training images. If `start` is given, its
    mean and std are used instead of the measured ones.
    """
    if architecture == "lenet5":
        return ColourStats.fixed(*LENET5_INPUT)
    own = ColourStats.of(data.pixels)
    if start is None:
        return own
    recipe = start.card.recipe
    return ColourStats(torch.tensor(recipe.mean), torch.tensor(recipe.std), own.axes)


def build(
    job: TrainingJob, classes: tuple[str, ...], start: registry.WeightsFile | None
) -> tuple[Network, dict[str, Any]]:
    """Returns the network to train, and the arguments of its configuration, which are stored in the weights file.

    Raises UsageError if the image size is invalid, if `start` is of another architecture or image size, or if
    `job.freeze` leaves no parameter to train.
    """
    kind = registry.ARCHITECTURES[job.architecture]
    arguments = dict(start.card.arguments) if start else {"image_size": job.config.image_size}
    arguments["num_classes"] = len(classes)
    if start and start.card.architecture != job.architecture:
        raise UsageError(
            f"{job.start} is of architecture {start.card.architecture}, not {job.architecture}",
            hint=f'architecture="{start.card.architecture}"',
            shell_hint=f"--model {start.card.architecture}",
        )
    if start and arguments["image_size"] != job.config.image_size:
        size = arguments["image_size"]
        raise UsageError(
            f"{job.start} takes images of {size} pixels a side, not {job.config.image_size}",
            **setting_hint("image_size", size),
        )
    check_image_size(job)
    network = networks_build.build_network(job.architecture, kind(**arguments))
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


def _device(name: str) -> torch.device:
    """Chooses the device of this process. Raises UsageError if processes of torchrun would have to share a GPU."""
    chosen = choose_device(name)
    processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if processes > 1 and chosen.startswith("cuda:"):
        raise UsageError(
            f"{processes} processes cannot share {chosen}",
            hint='device="cuda" gives each process a GPU of its own',
            shell_hint="--device cuda gives each process a GPU of its own",
        )
    if processes > 1 and chosen == "cuda" and processes > gpus:
        start = f"torchrun --nproc-per-node {gpus}"
        raise UsageError(
            f"{processes} processes need a GPU each, but the number of GPUs is {gpus}",
            hint=f'use {start}, or device="cpu"',
            shell_hint=f"use {start}, or --device cpu",
        )
    if chosen == "cuda" and "LOCAL_RANK" in os.environ:
        chosen = f"cuda:{os.environ['LOCAL_RANK']}"
    device = torch.device(chosen)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def _as_rgb(values: torch.Tensor) -> tuple[float, float, float]:
    red, green, blue = values.tolist()
    return red, green, blue


def _display_names(job: TrainingJob, classes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple((job.names or {}).get(label, label) for label in classes)


def _compresses(config: TrainConfig) -> bool:
    return min(config.keep_convolution, config.keep_hidden, config.keep_classifier, config.share_from) < 1


def _summary(
    job: TrainingJob,
    data: TrainingSet,
    validation: TrainingSet | None,
    start: registry.WeightsFile | None,
    seconds: float,
) -> dict[str, Any]:
    """Returns a summary of the training, which is stored in the weights file."""
    held_out = f", {len(validation):,} to validate on" if validation is not None else ""
    summary = {
        "data": f"{len(data):,} images of {len(data.classes):,} classes{held_out}",
        "passes": job.config.epochs,
        "minutes": round(seconds / 60, 1),
        "settings": asdict(job.config),
    }
    return {**summary, **({"from": start.sha256} if start else {})}


def _record(data: TrainingSet, validation: TrainingSet | None, start: registry.WeightsFile | None) -> TrainingRecord:
    """Returns the record of pictures trained on and held out, including the pictures that `start` was trained on."""
    before = weights.read_record(start.path) if start else TrainingRecord()
    return TrainingRecord.of(data.file_digests(), validation.file_digests() if validation else (), before)


def _note(log: Log, text: str) -> None:
    log({"event": "note", "text": text})
