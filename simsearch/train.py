"""The training loop: one network, from decoded pixels to a dense checkpoint.

Sources: Krizhevsky et al. 2012, section 4 (patches, reflections, PCA colour) and section 5 (SGD with momentum);
Zhu & Gupta 2017 (pruning gradually while training); the similarity matching follows Tung & Mori, ICCV 2019, with
Euclidean distances in the student because that is what the index will search by.

Shape letters: N training images, P side of the stored images, B batch, S side of the network's input, C classes,
D width of the last hidden layer, T width of the teacher's features.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from simsearch.errors import SimsearchError
from simsearch.models.alexnet import AlexNet

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True)
class TrainConfig:
    """One training run. The defaults suit a few passes over 70,000 images, not the paper's 90 over 1.2 million."""

    epochs: int = 5
    batch_size: int = 128
    learning_rate: float = 0.02  # at its peak; cosine to zero after a linear warm-up
    warmup: float = 0.08  # share of the steps
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    dropout: float = 0.25  # the paper's 0.5 is for long trainings
    smallest_patch: float = 0.3  # least share of the image's area that a random patch shows
    colour_deviation: float = 0.1  # PCA colour (section 4.1)
    teacher_weight: float = 0.0  # 0: labels alone
    label_weight: float = 1.0
    temperature: float = 0.1  # of the two similarity matrices
    prune_from: float = 0.35  # share of the steps after which pruning sets in
    prune_until: float = 0.8
    keep_convolution: float = 0.6  # share of the weights kept in the convolutions after the first,
    keep_hidden: float = 0.2  # in the two hidden layers,
    keep_classifier: float = 0.5  # and in the last one
    seed: int = 0


@dataclass(frozen=True)
class TrainingSet:
    """Decoded images: pixels (N, P, P, 3) uint8, labels (N,) int64, class names, teacher (N, T) or None."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    teacher: NDArray[np.float16] | None = None

    def __post_init__(self) -> None:
        if len(self.pixels) != len(self.labels):
            raise SimsearchError(f"{len(self.pixels)} images but {len(self.labels)} labels")
        if self.teacher is not None and len(self.teacher) != len(self.pixels):
            raise SimsearchError(f"{len(self.pixels)} images but {len(self.teacher)} teacher rows")


@dataclass(frozen=True)
class Colour:
    """Statistics of the training pixels on the 0 to 255 scale: mean (3,), deviation (3,), and the covariance's
    eigenvectors (3, 3, in columns) each times the root of its eigenvalue."""

    mean: Tensor
    deviation: Tensor
    axes: Tensor

    @classmethod
    def of(cls, pixels: NDArray[np.uint8]) -> Colour:
        """Measures them on up to 2,000 images spread evenly over the set."""
        sample = pixels[:: max(1, len(pixels) // 2000)].reshape(-1, 3).astype(np.float64)
        values, vectors = np.linalg.eigh(np.cov(sample.T))
        axes = vectors * np.sqrt(np.maximum(values, 0))
        return cls(*(torch.tensor(x, dtype=torch.float32) for x in (sample.mean(0), sample.std(0), axes)))

    def to(self, device: torch.device) -> Colour:
        return Colour(self.mean.to(device), self.deviation.to(device), self.axes.to(device))


def augment(pixels: Tensor, side: int, colour: Colour, config: TrainConfig, generator: torch.Generator) -> Tensor:
    """Random patches, reflections and colours: (B, P, P, 3) uint8 -> (B, 3, S, S) float32, normalised.

    A patch has a random area and an aspect ratio between 3/4 and 4/3 (Szegedy et al. 2015), cut and scaled in one
    bilinear resampling. The random numbers are drawn on the CPU so that every device trains on the same patches.
    """
    batch, device = len(pixels), pixels.device

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(batch, generator=generator) * (high - low) + low

    area, ratio = uniform(config.smallest_patch, 1), torch.exp(uniform(-math.log(4 / 3), math.log(4 / 3)))
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    flip = torch.where(uniform(-1, 1) < 0, -1.0, 1.0)
    theta = torch.zeros(batch, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = width * flip, (1 - width) * uniform(-1, 1)
    theta[:, 1, 1], theta[:, 1, 2] = height, (1 - height) * uniform(-1, 1)
    shift = torch.randn(batch, 3, generator=generator) * config.colour_deviation
    grid = F.affine_grid(theta.to(device), [batch, 3, side, side], align_corners=False)
    x = F.grid_sample(pixels.permute(0, 3, 1, 2).float(), grid, padding_mode="border", align_corners=False)
    x = x + (shift.to(device) @ colour.axes.T)[:, :, None, None]
    return normalise(x, colour)


def centre(pixels: Tensor, side: int, colour: Colour) -> Tensor:
    """The centre patches, as at inference: (B, P, P, 3) uint8 -> (B, 3, S, S) float32, normalised."""
    start = (pixels.shape[1] - side) // 2
    patch = pixels[:, start : start + side, start : start + side]
    return normalise(patch.permute(0, 3, 1, 2).float(), colour)


def normalise(x: Tensor, colour: Colour) -> Tensor:
    x = (x - colour.mean[:, None, None]) / colour.deviation[:, None, None]
    return x.contiguous(memory_format=torch.channels_last)


def similarity_loss(features: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """How far the student's neighbourhoods are from the teacher's: a scalar.

    features (B, D) and teacher (B, T) each give, for every image, a distribution over the other B - 1 images of the
    batch: the teacher's by cosine, the student's by squared Euclidean distance in units of the mean squared norm
    (for vectors of equal length the two agree). The loss is the mean Kullback-Leibler divergence.
    """
    features = features.float()
    squared = features.square().sum(1)
    distances = squared[:, None] + squared[None, :] - 2 * features @ features.T
    # The unit is part of the gradient: held constant, it would let the loss shrink all features to nothing.
    student = -distances / (2 * squared.mean().clamp(min=1e-6)) / temperature
    unit = F.normalize(teacher.float(), dim=1)
    target = unit @ unit.T / temperature
    itself = torch.eye(len(features), dtype=torch.bool, device=features.device)
    student, target = student.masked_fill(itself, -1e4), target.masked_fill(itself, -1e4)
    return F.kl_div(student.log_softmax(1), target.log_softmax(1), reduction="batchmean", log_target=True)


class Pruner:
    """Gradual magnitude pruning: the share of weights kept falls along a cubic from 1 to its final value."""

    def __init__(self, network: AlexNet, config: TrainConfig) -> None:
        self.config = config
        self.final: dict[str, float] = {}
        for name, _ in network.named_parameters():
            if not name.endswith("weight") or name == "conv.0.weight":
                continue  # biases and the first layer's kernels are few and precious
            part = name.split(".")[0]
            keep = {"conv": config.keep_convolution, "hidden": config.keep_hidden}.get(part, config.keep_classifier)
            self.final[name] = keep
        self.parameters = dict(network.named_parameters())
        self.masks: dict[str, Tensor] = {}

    def update(self, progress: float) -> None:
        """Chooses the weights to keep at `progress` (share of the training done, 0 to 1)."""
        span = self.config.prune_until - self.config.prune_from
        done = min(1.0, (progress - self.config.prune_from) / span)
        if done <= 0:
            return
        for name, final in self.final.items():
            weight = self.parameters[name].detach()
            keep = final + (1 - final) * (1 - done) ** 3
            count = max(1, round(keep * weight.numel()))
            threshold = weight.abs().flatten().kthvalue(weight.numel() - count + 1).values
            self.masks[name] = weight.abs() >= threshold

    def apply(self) -> None:
        """Sets the pruned weights to zero."""
        with torch.no_grad():
            for name, mask in self.masks.items():
                self.parameters[name].mul_(mask)


def learning_rate(config: TrainConfig, progress: float) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if progress < config.warmup:
        return config.learning_rate * progress / config.warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (progress - config.warmup) / (1 - config.warmup)))


def train(
    data: TrainingSet,
    network: AlexNet,
    config: TrainConfig,
    checkpoint: Path,
    *,
    device: torch.device | None = None,
    log: Callable[[dict[str, Any]], None] = lambda row: None,
    compiled: bool = True,
    checkpoint_seconds: float = 240.0,
) -> Colour:
    """Trains `network` in place and leaves its state in `checkpoint`; continues from there if the file exists.

    Every batch depends only on the seed and the step, so a resumed run sees what an uninterrupted one would have.
    `log` gets a row of step, steps, loss, rate (images/s) and learning rate every 50 steps.
    Returns the colour statistics, of which the recipe needs mean and deviation.
    """
    device = device or torch.device("cpu")
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.config = replace(network.config, dropout=config.dropout)
    for layer in network.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = config.dropout
    colour = Colour.of(data.pixels).to(device)
    decay = [p for n, p in network.named_parameters() if n.endswith("weight")]
    biases = [p for n, p in network.named_parameters() if not n.endswith("weight")]
    optimizer = torch.optim.SGD(
        [{"params": decay, "weight_decay": config.weight_decay}, {"params": biases, "weight_decay": 0.0}],
        lr=config.learning_rate, momentum=config.momentum, nesterov=True, fused=True,
    )  # fmt: skip
    pruner = Pruner(network, config)

    def outputs(x: Tensor) -> tuple[Tensor, Tensor]:
        features = network.features(x)
        return features, network.classifier(features)

    forward = torch.compile(outputs) if compiled else outputs
    steps_per_epoch = len(data.labels) // config.batch_size
    if steps_per_epoch == 0:
        raise SimsearchError(f"{len(data.labels)} images are fewer than one batch of {config.batch_size}")
    steps = config.epochs * steps_per_epoch
    first = _resume(checkpoint, network, optimizer, config)
    network.train()
    mixed = torch.autocast(device.type, torch.bfloat16) if _has_bf16(device) else contextlib.nullcontext()
    order: NDArray[np.int64] = np.zeros(0, np.int64)
    saved = told = time.monotonic()
    losses: list[Tensor] = []
    for step in range(first, steps):
        epoch, place = divmod(step, steps_per_epoch)
        if place == 0 or not len(order):
            order = np.random.default_rng((config.seed, epoch)).permutation(len(data.labels))
        rows = np.sort(order[place * config.batch_size : (place + 1) * config.batch_size])
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        pixels = torch.from_numpy(data.pixels[rows]).to(device, non_blocking=True)
        labels = torch.from_numpy(data.labels[rows]).to(device, non_blocking=True)
        x = augment(pixels, network.config.image_size, colour, config, generator)
        torch.manual_seed(config.seed * 1_000_003 + step)  # dropout
        with mixed:
            features, logits = forward(x)
        loss = config.label_weight * F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
        if data.teacher is not None and config.teacher_weight > 0:
            teacher = torch.from_numpy(data.teacher[rows]).to(device)
            loss = loss + config.teacher_weight * similarity_loss(features, teacher, config.temperature)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step / steps)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        if step % max(1, steps // 100) == 0:
            pruner.update(step / steps)
        pruner.apply()
        now = time.monotonic()
        if len(losses) == 50 or step + 1 == steps:
            mean = torch.stack(losses).mean().item()
            if not math.isfinite(mean):
                raise SimsearchError(f"the loss became {mean} at step {step}", hint="lower the learning rate")
            rate = len(losses) * config.batch_size / max(now - told, 1e-9)
            log({"step": step + 1, "steps": steps, "loss": round(mean, 4), "rate": round(rate, 1),
                 "learning_rate": round(learning_rate(config, step / steps), 6)})  # fmt: skip
            losses, told = [], now
        if now - saved > checkpoint_seconds or step + 1 == steps:
            _save(checkpoint, network, optimizer, config, step + 1)
            saved = now
    network.eval()
    return colour


def _has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 arithmetic is fast on the device; without it, float32 is the quicker choice."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def _resume(path: Path, network: AlexNet, optimizer: torch.optim.Optimizer, config: TrainConfig) -> int:
    """Restores a checkpoint in place and returns its step; 0 where there is none."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    if json.loads(state["config"]) != asdict(config):
        raise SimsearchError(f"{path} was trained with other settings", hint="remove it to start over")
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _save(path: Path, network: AlexNet, optimizer: torch.optim.Optimizer, config: TrainConfig, step: int) -> None:
    state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step,
             "config": json.dumps(asdict(config))}  # fmt: skip
    partial = path.with_name(path.name + ".partial")
    torch.save(state, partial)
    os.replace(partial, path)


@torch.inference_mode()
def evaluate(network: AlexNet, data: TrainingSet, colour: Colour, batch_size: int = 256) -> dict[str, float]:
    """Top-1 and top-5 accuracy, and P@6 by label under Euclidean distance, over the centre patches of `data`."""
    network.eval()
    device = next(network.parameters()).device
    features, correct, among_five = [], 0, 0
    for start in range(0, len(data.labels), batch_size):
        pixels = torch.from_numpy(np.ascontiguousarray(data.pixels[start : start + batch_size])).to(device)
        labels = torch.from_numpy(data.labels[start : start + batch_size]).to(device)
        hidden = network.features(centre(pixels, network.config.image_size, colour))
        guesses = network.classifier(hidden).topk(min(5, network.config.num_classes)).indices
        correct += int((guesses[:, 0] == labels).sum())
        among_five += int((guesses == labels[:, None]).any(1).sum())
        features.append(hidden.float().cpu())
    x, labels = torch.cat(features), torch.from_numpy(data.labels)
    near = torch.cdist(x, x).fill_diagonal_(float("inf")).topk(6, largest=False).indices
    precision = (labels[near] == labels[:, None]).float().mean().item()
    return {"top1": correct / len(labels), "top5": among_five / len(labels), "P@6": precision}
