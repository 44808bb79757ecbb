"""The training loop: trains any network of this package on one or several GPUs or on the CPU.

All cases run the same code, with different objects: a `ProcessGroup` of one process does not communicate, the autocast
context may be a null context, and `torch.compile` may be left out. With `torchrun --nproc-per-node N -m simsearch train
...` the batch is divided among N processes and the gradients are averaged. So the result is that of one process, except
for dropout, which each process draws for itself.

Shape letters: N training images, P side of the stored images, B batch, S side of the network's input, C classes, D
width of the last hidden layer.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from simsearch.errors import SimsearchError, TrainingInterruptedError, UsageError
from simsearch.training import augment
from simsearch.training.batches import Batch, batches
from simsearch.training.config import TrainConfig, setting_hint
from simsearch.training.device import autocast_context, compile_with_fallback, within_memory
from simsearch.training.distributed import ProcessGroup
from simsearch.training.losses import length_loss, neighbour_loss, similarity_loss
from simsearch.training.response_norm import plain_afterwards
from simsearch.training.state import TrainingState

if TYPE_CHECKING:
    from torch import Tensor

    from simsearch.models.networks.base import Network
    from simsearch.training.augment import ColourStats
    from simsearch.training.data import TrainingSet

LOG_INTERVAL = 50
"""Steps between two rows of the log."""

WORTH_COMPILING = 2_500
"""On the CPU, the network is compiled (in 20 to 60 s) if all steps together process at least this many images."""

STOP_INTERVAL = 10
"""Steps between two calls of `stop` if there are several processes: to share the result, they wait for the GPU."""

Log = Callable[[dict[str, Any]], None]


class Outputs(nn.Module):
    """Wraps a network so that one call gives features and logits: (B, 3, S, S) -> (B, D) and (B, C)."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.features(x)
        return features, self.network.classifier(features)


def train(
    data: TrainingSet,
    network: Network,
    config: TrainConfig,
    checkpoint: Path,
    colour: ColourStats,
    *,
    validation: TrainingSet | None = None,
    device: torch.device | None = None,
    resume: bool = False,
    facts: dict[str, Any] | None = None,
    log: Log = lambda row: None,
    stop: Callable[[], bool] = lambda: False,
    checkpoint_seconds: float = 180.0,
) -> float:
    """Trains `network` in place and returns the seconds it took, including those of interrupted runs.

    Every batch depends only on the seed and the step, so a resumed run has the same losses as an uninterrupted run.

    checkpoint: file that is written every `checkpoint_seconds`, when stopped, and at the end.
    colour: the statistics that normalise the pixels.
    validation: images on which accuracy is measured after each epoch. Without them, the schedule "plateau" never lowers
    the learning rate.
    resume: True to continue from the checkpoint if it exists.
    facts: JSON values stored with the checkpoint; they must be the same when the training is resumed.
    log: called with each row of the log, a dict. The value of `event` is one of these, with other keys in parentheses:
        "resume" (step);
        "step", every 50 steps and at the end of an epoch (step, steps, epoch, loss, top1 and top5 from 0 to 1, rate in
        images/s, learning_rate, and `left`, the estimated seconds that remain);
        "epoch", at the end of an epoch if there are validation images (step, epoch, top1, top5);
        "note" (text).
    With fewer than ten classes, rows have no top5.
    stop: when it returns True, a checkpoint is written and TrainingInterruptedError raised.

    Raises SimsearchError if the loss becomes NaN or infinite, or if a batch does not fit into memory; the last
    checkpoint is kept. Raises UsageError if the batch cannot be divided evenly among the processes.
    """
    device, facts = device or torch.device("cpu"), facts or {}
    world = ProcessGroup.join(device)
    batch = _batch_size(config, len(data), world)
    with within_memory(batch, device):
        training = TrainingState(network, config, max(1, len(data) // batch), device)
    if resume and checkpoint.exists():
        training.restore(checkpoint, facts)
        log({"event": "resume", "step": training.state.step})
    forward = _prepare_forward(training, world, log)
    colour, state = colour.to(device), training.state
    saver = _CheckpointWriter(training, world, checkpoint, facts, checkpoint_seconds)
    rate = _Rate(batch, state.step)
    with autocast_context(config, device) as mixed, within_memory(batch, device), plain_afterwards(network):
        for item in batches(data, training, world, batch):
            loss = _step(training, world, forward, mixed, colour, item)
            at_end = state.step % training.steps_per_epoch == 0
            if state.step % LOG_INTERVAL == 0 or at_end:
                log(_row(training, world, rate))
            if at_end:
                _end_epoch(training, world, mixed, colour, validation, log)
            stopping = (world.size == 1 or at_end or state.step % STOP_INTERVAL == 0) and world.any(stop(), device)
            if saver.due() or stopping or training.done:
                saver.save(float(loss))
            if stopping:
                place = f"step {state.step:,} of {training.steps:,}"
                raise TrainingInterruptedError(
                    f"stopped at {place}", hint="resume=True continues", shell_hint="--resume continues"
                )
    training.apply_average()
    network.eval()
    return state.seconds


def _batch_size(config: TrainConfig, images: int, world: ProcessGroup) -> int:
    """Returns the number of images of a batch, in all processes together.

    Raises UsageError if they cannot be divided evenly among the processes.
    """
    batch = min(config.batch_size, images)
    if batch % world.size:
        hints = setting_hint("batch_size", batch - batch % world.size) if batch > world.size else {}
        raise UsageError(f"a batch of {batch} images cannot be divided evenly among {world.size} processes", **hints)
    return batch


def _prepare_forward(training: TrainingState, world: ProcessGroup, log: Log) -> Callable[[Tensor], Any]:
    """Returns the forward pass, (B, 3, S, S) -> features and logits, compiled if the configuration says so.

    With several processes, its backward pass averages the gradients over the processes.
    """
    outputs: nn.Module = Outputs(training.network)
    if world.size > 1:
        cuda = training.device.type == "cuda"
        outputs = nn.parallel.DistributedDataParallel(outputs, device_ids=[training.device.index] if cuda else None)
    if not training.config.compile:
        return outputs
    images = training.steps * training.config.batch_size
    if training.device.type == "cpu" and images < WORTH_COMPILING:
        log({"event": "note", "text": f"not compiled, since that takes longer than training on {images:,} images does"})
        return outputs
    if training.device.type == "cpu" and not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        log({"event": "note", "text": "no C++ compiler was found; training goes on uncompiled, and slower"})
        return outputs
    log({"event": "note", "text": "compiling the network; the first step takes a minute or so"})
    return compile_with_fallback(training.network, outputs, training.device, log)


def _step(
    training: TrainingState,
    world: ProcessGroup,
    forward: Callable[[Tensor], Any],
    mixed: Callable[[], Any],
    colour: ColourStats,
    item: Batch,
) -> Tensor:
    """Does one optimizer step on the batch `item`; returns the loss, a detached scalar.

    Adds the loss and the numbers of correct predictions to `training.window`. mixed: makes the autocast context.
    """
    network, config, state = training.network, training.config, training.state
    network.train()
    for group in training.optimizer.param_groups:
        group["lr"] = training.learning_rate()
    # Dropout differs between steps and between processes, but is the same when a run is repeated.
    torch.manual_seed((config.seed * 1_000_003 + state.step) * world.size + world.rank)
    # Outside autocast: bfloat16 would round the coordinates of pixels.
    x = augment.apply_augmentation(item.views, item.pixels, config.image_size, colour)
    with mixed():
        features, logits = forward(x)
    loss = _loss(training, world, features, logits.float(), item)
    loss.backward()  # type: ignore[no-untyped-call]
    if config.clip:
        nn.utils.clip_grad_norm_(network.parameters(), config.clip)
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    training.compressor.after(state.step, training.steps)
    _count(training.window, loss.detach(), logits.detach(), item.labels)
    return loss.detach()


def _loss(training: TrainingState, world: ProcessGroup, features: Tensor, logits: Tensor, item: Batch) -> Tensor:
    """Returns the mean loss over a batch, a scalar.

    The loss on labels is computed from the images of this process. Losses on pairs of images are computed from the
    images of all processes.
    """
    config, labels, teacher = training.config, item.labels, item.teacher
    loss: Tensor = config.label_weight * training.network.loss(logits, labels, config.label_smoothing)
    taught = config.teacher_weight > 0 and teacher is not None
    if not (config.objective == "metric" or taught or config.norm_weight):
        return loss
    features, labels = world.gather(features.float()), world.gather(labels)
    if config.objective == "metric":
        loss = loss + config.metric_weight * neighbour_loss(features, labels, config.temperature)
    if taught and teacher is not None:
        loss = loss + config.teacher_weight * similarity_loss(features, world.gather(teacher), config.temperature)
    if config.norm_weight:
        loss = loss + config.norm_weight * length_loss(features)
    return loss


def _end_epoch(
    training: TrainingState,
    world: ProcessGroup,
    mixed: Callable[[], Any],
    colour: ColourStats,
    validation: TrainingSet | None,
    log: Log,
) -> None:
    """Measures the accuracy on the validation images, if any, and updates the schedule and the average of weights.

    mixed: makes the autocast context.
    """
    if validation is not None:
        scores = accuracy(training.network, validation, colour, world=world, mixed=mixed)
        log({"event": "epoch", "step": training.state.step, "epoch": training.epoch, **scores})
        training.update_schedule(1 - scores["top1"])
    training.update_average()


class _CheckpointWriter:
    """Writes checkpoints from time to time, in the first process alone, and counts the seconds of training."""

    def __init__(
        self, training: TrainingState, world: ProcessGroup, path: Path, facts: dict[str, Any], interval: float
    ) -> None:
        self._training, self._world, self._path, self._facts = training, world, path, facts
        self._interval = interval
        self._earlier = training.state.seconds
        self._began = self._saved = time.monotonic()

    def due(self) -> bool:
        """Returns True if the last checkpoint is older than the interval."""
        return time.monotonic() - self._saved > self._interval

    def save(self, loss: float) -> None:
        """Writes a checkpoint. Raises SimsearchError if the loss or a weight is NaN or infinite."""
        _check_loss(loss, self._training)
        self._training.state.seconds = self._earlier + time.monotonic() - self._began
        if self._world.rank == 0:
            self._training.save(self._path, self._facts)
        self._saved = time.monotonic()


def _count(window: Tensor, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
    """Adds the figures of a batch to `window` (4,): the loss times B, the top-1 hits, the top-5 hits, and B."""
    hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    top1, top5 = hits[:, 0].sum(), hits.sum()
    window += torch.stack([loss.double() * len(labels), top1, top5, torch.full_like(top1, len(labels))])


class _Rate:
    """Computes images per second since the previous call."""

    def __init__(self, batch: int, step: int) -> None:
        self.batch, self.step, self.time = batch, step, time.monotonic()

    def __call__(self, step: int) -> float:
        now = time.monotonic()
        rate = (step - self.step) * self.batch / max(now - self.time, 1e-9)
        self.time, self.step = now, step
        return rate


def _row(training: TrainingState, world: ProcessGroup, rate: _Rate) -> dict[str, Any]:
    """Returns a row of the log about the steps since the previous row, and sets `training.window` to zero."""
    state = training.state
    sums = world.total(training.window).tolist()
    training.window.zero_()
    loss, top1, top5 = (value / sums[3] for value in sums[:3])
    _check_loss(loss, training)
    speed = rate(state.step)
    left = (training.steps - state.step) * rate.batch / speed
    return {
        "event": "step",
        "step": state.step,
        "steps": training.steps,
        "epoch": round(state.step / training.steps_per_epoch, 3),
        "loss": round(loss, 5),
        **_scores(training.network, round(top1, 4), round(top5, 4)),
        "rate": round(speed, 1),
        "learning_rate": training.optimizer.param_groups[0]["lr"],
        "left": round(left),
    }


def _check_loss(loss: float, training: TrainingState) -> None:
    """Raises SimsearchError if the loss is NaN or infinite."""
    if not math.isfinite(loss):
        raise SimsearchError(f"the loss became {loss} by step {training.state.step}", **training.slower_hint())


@torch.no_grad()
def accuracy(
    network: Network,
    data: TrainingSet,
    colour: ColourStats,
    *,
    world: ProcessGroup | None = None,
    mixed: Callable[[], Any] = contextlib.nullcontext,
    batch_size: int = 256,
) -> dict[str, float]:
    """Returns top-1 accuracy and, with ten or more classes, top-5 accuracy on the centre patches, each from 0 to 1.

    world: the processes that share the work; each of them gets the result. mixed: makes the autocast context.
    """
    world = world or ProcessGroup()
    network.eval()
    device = next(network.parameters()).device
    side = network.config.image_size
    hits = torch.zeros(2, device=device)
    for start in range(world.rank * batch_size, len(data), world.size * batch_size):
        pixels = torch.from_numpy(np.ascontiguousarray(data.pixels[start : start + batch_size])).to(device)
        labels = torch.from_numpy(data.labels[start : start + batch_size]).to(device)
        with mixed():
            logits = network(augment.centre(pixels, side, colour)).float()
        found = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        hits += torch.stack([found[:, 0].sum(), found.sum()])
    top1, top5 = (world.total(hits) / len(data)).tolist()
    return _scores(network, top1, top5)


def _scores(network: Network, top1: float, top5: float) -> dict[str, float]:
    """Returns the scores; leaves out top-5 if there are fewer than ten classes: chance alone would give over 50%."""
    return {"top1": top1} | ({"top5": top5} if network.config.num_classes >= 10 else {})
