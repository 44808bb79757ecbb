"""The training loop: any network here, on one GPU, several, or the CPU.

Where the work happens differs by objects, not by branches: a `World` of one process averages nothing, `autocast` may
be disabled, `torch.compile` may be the identity. `torchrun --nproc-per-node N -m simsearch train ...` makes the world
larger; the batch is then shared out and the gradients averaged, so the result is that of one process.

Source: Krizhevsky et al. 2012, section 5 (SGD with momentum, division by 10 when validation stalls).

Shape letters: N training images, P side of the stored images, B batch, S side of the network's input, C classes,
D width of the last hidden layer.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import distributed, nn

from simsearch import augment, machine
from simsearch.errors import SimsearchError, TrainingInterruptedError, UsageError
from simsearch.losses import length_loss, neighbour_loss, similarity_loss
from simsearch.presets import TrainConfig
from simsearch.pruning import Compressor

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from simsearch.augment import Colour
    from simsearch.models.network import Network
    from simsearch.trainset import TrainingSet

EVERY = 50
"""Steps between two rows of the log."""

PATIENCE = timedelta(days=1)
"""For which processes wait for each other: the first one decodes all pictures and publishes the weights alone."""

ASK = 10
"""Steps between two times that several processes ask each other whether to stop, for which a GPU has to be waited."""

AHEAD = 4
"""Batches that threads gather while a GPU computes; a CPU is the slower part, and one is enough."""

TOGETHER = 4
"""Images of a label that go into a batch together, so that each has others to be near to."""


@dataclass(frozen=True)
class World:
    """The processes that train together; `rank` is this one's number."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: torch.device) -> World:
        """The world that torchrun describes in the environment, or one of a single process."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        if not distributed.is_initialized():
            cuda = device.type == "cuda"
            distributed.init_process_group(
                "nccl" if cuda else "gloo", timeout=PATIENCE, device_id=device if cuda else None
            )
        return cls(distributed.get_rank(), distributed.get_world_size())

    def total(self, numbers: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            distributed.all_reduce(numbers)
        return numbers

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is up in any process."""
        return bool(self.total(torch.tensor(float(flag), device=device))) if self.size > 1 else flag

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows (b, ...) of all processes, in the order of their ranks: (b * size, ...); gradients find back."""
        if self.size == 1:
            return rows
        found: Tensor = _Gathered.apply(rows)
        return found

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            distributed.barrier()

    def leave(self) -> None:
        """Once all processes are here, ends what connects them: NCCL wants no process to exit before."""
        if self.size > 1:
            distributed.barrier()
            distributed.destroy_process_group()


class _Gathered(torch.autograd.Function):
    """The gradient of a row is the sum of what all processes make of it; averaged over them, as gradients of weights
    are, that of one process which has the whole batch."""

    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(gradient)
        return gradient.chunk(distributed.get_world_size())[distributed.get_rank()]


@dataclass
class State:
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


class Training:
    """One training: a network, its optimizer and its place in the schedule, and how to save and restore them."""

    def __init__(self, network: Network, config: TrainConfig, steps_per_epoch: int, device: torch.device) -> None:
        self.network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.config, self.steps_per_epoch, self.device = config, steps_per_epoch, device
        self.steps = config.epochs * steps_per_epoch
        self.state = State()
        # Sums of loss, top-1, top-5 and images since the last row of the log.
        self.window = torch.zeros(4, dtype=torch.float64, device=device)
        for layer in network.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = config.dropout
        named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        groups = [{"params": [p for n, p in named if n.endswith("weight")], "weight_decay": config.weight_decay},
                  {"params": [p for n, p in named if not n.endswith("weight")], "weight_decay": 0.0}]  # fmt: skip
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
        content = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(),
                   "compressor": self.compressor.state(), "average": self.average,
                   "plain": json.dumps(plain)}  # fmt: skip
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
        self.state = State(**plain["state"])
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
    colour: Colour,
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
    world = World.join(device)
    batch = min(config.batch_size, len(data))
    if batch % world.size:
        hint = f"--set batch_size={batch - batch % world.size}" if batch > world.size else None
        raise UsageError(f"a batch of {batch} images cannot be shared by {world.size} processes evenly", hint=hint)
    with _within_memory(batch, device):
        training = Training(network, config, max(1, len(data) // batch), device)
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

    with _arithmetic(config, device) as mixed, _within_memory(batch, device):
        for pixels, labels, teacher, views in _batches(data, training, world, batch):
            network.train()
            for group in training.optimizer.param_groups:
                group["lr"] = training.learning_rate()
            torch.manual_seed((config.seed * 1_000_003 + state.step) * world.size + world.rank)  # dropout
            x = augment.apply(views, pixels, config.image_size, colour)  # whose coordinates want float32
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


def _prepared(training: Training, world: World, log: Callable[[dict[str, Any]], None]) -> Callable[[Tensor], Any]:
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
    return compiled(outputs, log)


def compiled(outputs: Callable[[Tensor], Any], log: Callable[[dict[str, Any]], None]) -> Callable[[Tensor], Any]:
    """A forward pass by torch.compile, or as it stands where the first call fails: for want of a compiler, say."""
    forward: Callable[[Tensor], Any] | None = None

    def call(x: Tensor) -> Any:
        nonlocal forward
        if forward is not None:
            return forward(x)
        forward = torch.compile(outputs)
        try:
            return forward(x)
        except RuntimeError as error:
            if _is_memory(error):
                raise
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            log({"event": "note", "text": f"torch.compile failed ({reason.strip()[:200]}); training goes on uncompiled,"
                                          " and slower"})  # fmt: skip
            forward = outputs
            return forward(x)

    return call


@contextlib.contextmanager
def _within_memory(batch: int, device: torch.device) -> Iterator[None]:
    """Raises SimsearchError where the memory does not suffice for a batch."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_memory(error):
            raise
        hint = f"--set batch_size={max(1, batch // 2)}"
        raise SimsearchError(f"a batch of {batch} does not fit into the memory of {device}", hint=hint) from error


def _is_memory(error: Exception) -> bool:
    """Whether there was too little memory; only some of those who say so have a class of their own for it."""
    said = str(error).lower()
    words = ("out of memory", "allocate memory", "not enough memory", "alloc_failed")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in said for word in words)


@contextlib.contextmanager
def _arithmetic(config: TrainConfig, device: torch.device) -> Iterator[Callable[[], Any]]:
    """What makes the context in which the network computes, a new one for each use; settings are put back after."""
    if config.precision == "float32":
        yield contextlib.nullcontext
        return
    autocast: Callable[[], Any] = contextlib.nullcontext
    if has_bf16(device):
        autocast = functools.partial(torch.autocast, device.type, torch.bfloat16)
    if device.type != "cuda":
        yield autocast
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in float32
    try:
        yield autocast
    finally:
        torch.set_float32_matmul_precision(before)


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is fast on the device; without it, float32 is the quicker choice."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def _batches(data: TrainingSet, training: Training, world: World, batch: int) -> Iterator[tuple[Any, ...]]:
    """This process's share of each batch until training is done: pixels, labels and teacher on the device, views.

    While a batch is computed, threads gather the next. What a GPU is to get lies in pinned memory, from where copies
    queue up behind the work there; from elsewhere each would wait until all of that is done.
    """
    config, device, per_epoch = training.config, training.device, training.steps_per_epoch
    share = batch // world.size
    mine = slice(world.rank * share, (world.rank + 1) * share)
    stored = data.pixels.shape[1]
    cuda = device.type == "cuda"
    order = functools.lru_cache(2)(lambda epoch: _order(data.labels, config, epoch))

    def gather(step: int) -> tuple[list[Tensor], augment.Views]:
        epoch, place = divmod(step, per_epoch)
        rows = np.sort(order(epoch)[place * batch : (place + 1) * batch])[mine]
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        views = augment.draw(batch, stored, config.image_size, config, generator)[mine]
        arrays = [data.pixels[rows], data.labels[rows]] + ([] if data.teacher is None else [data.teacher[rows]])
        tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
        if cuda:
            return [tensor.pin_memory() for tensor in tensors], views.each(torch.Tensor.pin_memory)
        return tensors, views

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    threads = min(AHEAD, machine.cores()) if cuda else 1
    with ThreadPoolExecutor(threads, thread_name_prefix="batches") as pool:
        step = training.state.step
        ahead = deque(pool.submit(gather, number) for number in range(step, step + threads))
        while not training.done:
            tensors, views = ahead.popleft().result()
            ahead.append(pool.submit(gather, training.state.step + threads))
            pixels, labels, *teacher = map(moved, tensors)
            yield pixels, labels, teacher[0] if teacher else None, views.each(moved)


def _order(labels: NDArray[np.int64], config: TrainConfig, epoch: int) -> NDArray[np.int64]:
    """The rows of an epoch, each once; for the metric objective, images of a label come a few at a time."""
    random = np.random.default_rng((config.seed, epoch))
    order = random.permutation(len(labels))
    if config.objective != "metric":
        return order
    order = order[np.argsort(labels[order], kind="stable")]
    groups = [order[start : start + TOGETHER] for start in range(0, len(order), TOGETHER)]
    return np.concatenate([groups[number] for number in random.permutation(len(groups))])


def _loss(
    network: Network, config: TrainConfig, world: World,
    features: Tensor, logits: Tensor, labels: Tensor, teacher: Tensor | None,
) -> Tensor:  # fmt: skip
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


def _row(training: Training, world: World, rate: _Rate) -> dict[str, Any]:
    """A row of the log over the steps since the last one, which starts a new window."""
    state = training.state
    sums = world.total(training.window).tolist()
    training.window.zero_()
    loss, one, five = (value / sums[3] for value in sums[:3])
    _check(loss, training)
    speed = rate(state.step)
    left = (training.steps - state.step) * rate.batch / speed
    return {"event": "step", "step": state.step, "steps": training.steps,
            "epoch": round(state.step / training.steps_per_epoch, 3), "loss": round(loss, 5), "top1": round(one, 4),
            "top5": round(five, 4), "rate": round(speed, 1), "learning_rate": training.optimizer.param_groups[0]["lr"],
            "left": round(left)}  # fmt: skip


def _check(loss: float, training: Training) -> None:
    if not math.isfinite(loss):
        raise SimsearchError(f"the loss became {loss} by step {training.state.step}", hint=training.slower())


@torch.no_grad()
def accuracy(
    network: Network, data: TrainingSet, colour: Colour, *, world: World | None = None,
    mixed: Callable[[], Any] = contextlib.nullcontext, batch_size: int = 256,
) -> dict[str, float]:  # fmt: skip
    """Shares of images whose label is the first, or among the first five, of the guesses from the centre patch."""
    world = world or World()
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
