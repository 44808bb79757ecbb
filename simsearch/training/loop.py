"""The training loop: any network here, on one GPU, several, or the CPU.

Where the work happens differs by objects, not by branches: a `ProcessGroup` of one process averages nothing,
`autocast` may
be disabled, `torch.compile` may be the identity. `torchrun --nproc-per-node N -m simsearch train ...` makes the world
larger; the batch is then shared out and the gradients averaged, so the result is that of one process.

Source: Krizhevsky et al. 2012, section 5 (SGD with momentum, division by 10 when validation stalls).

Shape letters: N training images, P side of the stored images, B batch, S side of the network's input, C classes,
D width of the last hidden layer.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from simsearch.errors import SimsearchError, TrainingInterruptedError, UsageError
from simsearch.training import augment
from simsearch.training.batches import batches
from simsearch.training.compression import Compressor
from simsearch.training.config import TrainConfig
from simsearch.training.device import autocast_context, compile_with_fallback, within_memory
from simsearch.training.distributed import ProcessGroup
from simsearch.training.losses import length_loss, neighbour_loss, similarity_loss

if TYPE_CHECKING:
    from torch import Tensor

    from simsearch.models.networks.base import Network
    from simsearch.training.augment import ColourStats
    from simsearch.training.data import TrainingSet

EVERY = 50
"""Steps between two rows of the log."""

ASK = 10
"""Steps between two times that several processes ask each other whether to stop, for which a GPU has to be waited."""


@dataclass
class StepState:
    """All that changes while training, besides network and optimizer: what makes a resumed run the same."""

    step: int = 0
    best: float = math.inf  # validation error
    stalled: int = 0  # epochs since
    reductions: int = 0
    window: list[float] = field(default_factory=lambda: [0.0] * 4)  # sums since the last row of the log
    averaged: int = 0
    seconds: float = 0.0


class Outputs(nn.Module):
    """A network with both outputs: (B, 3, S, S) -> (B, D) and (B, C)."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.features(x)
        return features, self.network.classifier(features)


class TrainingState:
    """One training: a network, its optimizer and its place in the schedule, and how to save and restore them."""

    def __init__(self, network: Network, config: TrainConfig, steps_per_epoch: int, device: torch.device) -> None:
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.config, self.steps_per_epoch, self.device = config, steps_per_epoch, device
        self.steps = config.epochs * steps_per_epoch
        self.state = StepState()
        # Sums of loss, top-1, top-5 and images since the last row of the log.
        self.window = torch.zeros(4, dtype=torch.float64, device=device)
        for layer in network.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = config.dropout
        named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for n, p in named if n.endswith("weight")], "weight_decay": config.weight_decay},
            {"params": [p for n, p in named if not n.endswith("weight")], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        if config.optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
                groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.nesterov, fused=True
            )
        else:
            self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
        self.compressor = Compressor(network, config)
        self.average: dict[str, Tensor] = {}

    @property
    def epoch(self) -> int:
        return self.state.step // self.steps_per_epoch

    @property
    def done(self) -> bool:
        return self.state.step >= self.steps or self.state.reductions > self.config.reductions

    def learning_rate(self) -> float:
        """The rate of the step to come."""
        config, progress = self.config, self.state.step / self.steps
        if config.schedule == "plateau":
            return config.learning_rate * 0.1**self.state.reductions
        if progress < config.warmup:
            return config.learning_rate * progress / config.warmup
        if config.schedule == "constant":
            return config.learning_rate
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (progress - config.warmup) / (1 - config.warmup)))

    def slower(self) -> str:
        """What to try where the training diverged."""
        return f"--set learning_rate={self.config.learning_rate / 3:.2g}"

    def judge(self, error: float) -> None:
        """After an epoch: has validation stalled? (section 5: divide by 10 when it stopped improving)"""
        state = self.state
        if error < state.best:
            state.best, state.stalled = error, 0
            return
        state.stalled += 1
        if self.config.schedule == "plateau" and state.stalled >= self.config.patience:
            state.stalled, state.reductions = 0, state.reductions + 1

    def gather_average(self) -> None:
        """After an epoch: takes part of it into the mean of the last ones."""
        if self.epoch <= self.config.epochs * (1 - self.config.average):
            return
        self.state.averaged += 1
        for name, value in self.network.state_dict().items():
            mean = self.average.setdefault(name, torch.zeros_like(value, dtype=torch.float32))
            mean += (value.float() - mean) / self.state.averaged

    def take_average(self) -> None:
        """At the end: the mean becomes the network."""
        if self.average:
            self.network.load_state_dict(self.average)

    def save(self, path: Path, facts: dict[str, Any]) -> None:
        """Writes the checkpoint in one atomic step. facts: plain values that a resumed run must share.

        Raises SimsearchError where a weight is no number any more, or the file cannot be written.
        """
        if not all(bool(weight.isfinite().all()) for weight in self.network.parameters()):
            raise SimsearchError(f"a weight became no number by step {self.state.step}", hint=self.slower())
        self.state.window = self.window.tolist()
        plain = {"config": asdict(self.config), "state": asdict(self.state), "facts": facts}
        content = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "compressor": self.compressor.state(),
            "average": self.average,
            "plain": json.dumps(plain),
        }
        partial = path.with_name(path.name + ".partial")
        try:
            torch.save(content, partial)
            os.replace(partial, path)
        except (RuntimeError, OSError) as error:  # torch has no reason to give
            partial.unlink(missing_ok=True)
            raise SimsearchError(f"{path} cannot be written; is the disk full?") from error

    def restore(self, path: Path, facts: dict[str, Any]) -> None:
        """Takes up where a checkpoint was left. Raises UsageError where it belongs to another training."""
        content, plain = read_checkpoint(path)
        for name, value in {**asdict(self.config), **facts}.items():
            was = {**plain["config"], **plain["facts"]}.get(name)
            if was != json.loads(json.dumps(value)):
                shown = f"{name} {was!r}, not {value!r}" if len(repr((was, value))) < 200 else f"another {name}"
                raise UsageError(f"{path} was trained with {shown}", hint="remove it to start over")
        self.network.load_state_dict(content["network"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.compressor.restore(content["compressor"])
        self.average = {name: value.to(self.device) for name, value in content["average"].items()}
        self.state = StepState(**plain["state"])
        self.window += torch.tensor(self.state.window, dtype=torch.float64, device=self.device)


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A checkpoint's tensors, and its plain values: config, state, facts. Raises UsageError. Nothing is unpickled."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return content, json.loads(content["plain"])
    except Exception as error:  # torch raises many kinds for a file that is none of its own
        raise UsageError(
            f"{path} is not a checkpoint: {type(error).__name__}", hint="remove it to start over"
        ) from error


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
    log: Callable[[dict[str, Any]], None] = lambda row: None,
    stop: Callable[[], bool] = lambda: False,
    checkpoint_seconds: float = 180.0,
) -> float:
    """Trains `network` in place, keeping a checkpoint; with `resume` it continues from there if the file exists.

    Every batch depends only on the seed and the step, so a resumed run has the losses that an uninterrupted one would
    have had. `log` gets rows with an `event`: "resume" (step), "step" (every 50: step, epoch, loss, top1 and top5 as
    shares, rate in images/s, learning_rate, left in seconds), "epoch" (with validation: top1, top5), "note" (text).
    Returns the seconds it took, all runs together. When `stop` turns true, a checkpoint is written and
    TrainingInterruptedError raised. Raises SimsearchError where the loss is no number any more or the memory does not
    suffice; the last checkpoint remains.
    """
    device, facts = device or torch.device("cpu"), facts or {}
    world = ProcessGroup.join(device)
    batch = min(config.batch_size, len(data))
    if batch % world.size:
        hint = f"--set batch_size={batch - batch % world.size}" if batch > world.size else None
        raise UsageError(f"a batch of {batch} images cannot be shared by {world.size} processes evenly", hint=hint)
    with within_memory(batch, device):
        training = TrainingState(network, config, max(1, len(data) // batch), device)
    if resume and checkpoint.exists():
        training.restore(checkpoint, facts)
        log({"event": "resume", "step": training.state.step})
    forward = _prepared(training, world, log)
    colour, state = colour.to(device), training.state
    began = saved = time.monotonic()
    earlier = state.seconds
    rate = _Rate(batch, state.step)

    def save() -> None:
        state.seconds = earlier + time.monotonic() - began
        if world.rank == 0:
            training.save(checkpoint, facts)

    with autocast_context(config, device) as mixed, within_memory(batch, device):
        for pixels, labels, teacher, views in batches(data, training, world, batch):
            network.train()
            for group in training.optimizer.param_groups:
                group["lr"] = training.learning_rate()
            torch.manual_seed((config.seed * 1_000_003 + state.step) * world.size + world.rank)  # dropout
            x = augment.apply_augmentation(views, pixels, config.image_size, colour)  # whose coordinates want float32
            with mixed():
                features, logits = forward(x)
            loss = _loss(network, config, world, features, logits.float(), labels, teacher)
            loss.backward()  # type: ignore[no-untyped-call]
            if config.clip:
                nn.utils.clip_grad_norm_(network.parameters(), config.clip)
            training.optimizer.step()
            training.optimizer.zero_grad(set_to_none=True)
            state.step += 1
            training.compressor.after(state.step, training.steps)
            _count(training.window, loss.detach(), logits.detach(), labels)
            at_end = state.step % training.steps_per_epoch == 0
            if state.step % EVERY == 0 or at_end:
                log(_row(training, world, rate))
            if at_end:
                if validation is not None:
                    scores = accuracy(network, validation, colour, world=world, mixed=mixed)
                    log({"event": "epoch", "step": state.step, "epoch": training.epoch, **scores})
                    training.judge(1 - scores["top1"])
                training.gather_average()
            asked = world.size == 1 or at_end or state.step % ASK == 0
            stopping = asked and world.any(stop(), device)
            if time.monotonic() - saved > checkpoint_seconds or stopping or training.done:
                _check(float(loss.detach()), training)
                save()
                saved = time.monotonic()
            if stopping:
                raise TrainingInterruptedError(
                    f"stopped at step {state.step:,} of {training.steps:,}", hint="--resume continues"
                )
    training.take_average()
    network.eval()
    return state.seconds


def _prepared(
    training: TrainingState, world: ProcessGroup, log: Callable[[dict[str, Any]], None]
) -> Callable[[Tensor], Any]:
    """The forward pass as it is called: averaging gradients over the world, compiled."""
    outputs: nn.Module = Outputs(training.network)
    if world.size > 1:
        cuda = training.device.type == "cuda"
        outputs = nn.parallel.DistributedDataParallel(outputs, device_ids=[training.device.index] if cuda else None)
    if not training.config.compile:
        return outputs
    if training.device.type == "cpu" and not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        log({"event": "note", "text": "no C++ compiler was found; training goes on uncompiled, and slower"})
        return outputs
    return compile_with_fallback(outputs, log)


def _loss(
    network: Network,
    config: TrainConfig,
    world: ProcessGroup,
    features: Tensor,
    logits: Tensor,
    labels: Tensor,
    teacher: Tensor | None,
) -> Tensor:
    """The mean loss over a batch, a scalar: by label over this process's share, by pairs of images over the whole."""
    loss: Tensor = config.label_weight * network.loss(logits, labels, config.label_smoothing)
    taught = config.teacher_weight > 0 and teacher is not None
    if not (config.objective == "metric" or taught or config.norm_weight):
        return loss
    features, labels = world.gathered(features.float()), world.gathered(labels)
    if config.objective == "metric":
        loss = loss + config.metric_weight * neighbour_loss(features, labels, config.temperature)
    if taught and teacher is not None:
        loss = loss + config.teacher_weight * similarity_loss(features, world.gathered(teacher), config.temperature)
    if config.norm_weight:
        loss = loss + config.norm_weight * length_loss(features)
    return loss


def _count(window: Tensor, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
    best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    one, five = best[:, 0].sum(), best.sum()
    window += torch.stack([loss.double() * len(labels), one, five, torch.full_like(one, len(labels))])


class _Rate:
    """Images a second since the last row."""

    def __init__(self, batch: int, step: int) -> None:
        self.batch, self.step, self.time = batch, step, time.monotonic()

    def __call__(self, step: int) -> float:
        now = time.monotonic()
        rate = (step - self.step) * self.batch / max(now - self.time, 1e-9)
        self.time, self.step = now, step
        return rate


def _row(training: TrainingState, world: ProcessGroup, rate: _Rate) -> dict[str, Any]:
    """A row of the log over the steps since the last one, which starts a new window."""
    state = training.state
    sums = world.total(training.window).tolist()
    training.window.zero_()
    loss, one, five = (value / sums[3] for value in sums[:3])
    _check(loss, training)
    speed = rate(state.step)
    left = (training.steps - state.step) * rate.batch / speed
    return {
        "event": "step",
        "step": state.step,
        "steps": training.steps,
        "epoch": round(state.step / training.steps_per_epoch, 3),
        "loss": round(loss, 5),
        "top1": round(one, 4),
        "top5": round(five, 4),
        "rate": round(speed, 1),
        "learning_rate": training.optimizer.param_groups[0]["lr"],
        "left": round(left),
    }


def _check(loss: float, training: TrainingState) -> None:
    if not math.isfinite(loss):
        raise SimsearchError(f"the loss became {loss} by step {training.state.step}", hint=training.slower())


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
    """Shares of images whose label is the first, or among the first five, of the guesses from the centre patch."""
    world = world or ProcessGroup()
    network.eval()
    device = next(network.parameters()).device
    side = network.config.image_size
    right = torch.zeros(2, device=device)
    for start in range(world.rank * batch_size, len(data), world.size * batch_size):
        pixels = torch.from_numpy(np.ascontiguousarray(data.pixels[start : start + batch_size])).to(device)
        labels = torch.from_numpy(data.labels[start : start + batch_size]).to(device)
        with mixed():
            logits = network(augment.centre(pixels, side, colour)).float()
        best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        right += torch.stack([best[:, 0].sum(), best.sum()])
    one, five = (world.total(right) / len(data)).tolist()
    return {"top1": one, "top5": five}
