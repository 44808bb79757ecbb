#!/usr/bin/env python3
"""Trains AlexNet on photographs without labels, under a teacher, and makes the weights that ship.

    scripts/reproduce/pictures.py ... && scripts/reproduce/arrays.py ...    # the pictures: SETS
    scripts/reproduce/teacher.py SETS/imagenette160+train.npy WORK          # the teacher: lite0-128-int8.onnx
    scripts/reproduce/alexnet.py SETS WORK/stable --teacher TEACHER
    scripts/reproduce/alexnet.py SETS WORK/cooled --teacher TEACHER --start WORK/stable --more 400 --cooldown 400
    scripts/reproduce/alexnet.py SETS WORK/small --teacher TEACHER --start WORK/cooled --more 60 --cooldown 60 \\
                                 --compress --rate 0.002
    scripts/reproduce/alexnet_file.py SETS WORK/small alexnet.safetensors --data DATA

The first goes on at one rate for as long as there is time, and can be stopped and started again; the second branches
off from where it is and lets the rate fall to 0, after which the weights are at their best; the third prunes and shares
them while they are trained a little further; the fourth writes and measures the file. DATA is what `pictures.py` takes.

WORK/NAME gets `checkpoint.pt`, every few minutes and when the process is told to end (exit code 75), and `log.jsonl`.
Batches depend on the seed and the step alone, so a stopped training goes on as if it had not been.

The weights that ship learnt at `--rate 0.08`, then with `--regression 4 --orthogonal 0.15 --coarse 0.25`, while the
rate fell with `--peaks 0.01`, under `teacher.py --name lite2 --side 192`; lately in the same way from `--begin` on,
with `--rate 0.05` falling all the time, `--noise 0.2` and `--dropout 0.05`. `docs/weights-log.md` tells all trials.

`--objective labels` learns from labels alone, of the pictures whose label is one of ImageNet's 1000, without a teacher.
`--begin FILE.safetensors` begins with weights without normalisation, which may be of a smaller `--image-size`.

`pip install openvino` makes it faster: the teacher then runs there. What the student sees, and the teacher's answer to
it, is prepared by `alexnet_views.py` in a thread.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import numpy as np
import torch
import torch.nn.functional as F
from alexnet_views import CLASSES, COLOUR, Batch, Pictures, Teacher, batches
from torch import nn

from simsearch.common.atomic_files import replacing
from simsearch.models import larger_input, weights
from simsearch.models.networks.build import build_network
from simsearch.models.networks.configs import AlexNetConfig
from simsearch.training import augment, batch_norm
from simsearch.training.compression import Compressor
from simsearch.training.config import TrainConfig
from simsearch.training.device import has_bf16
from simsearch.training.losses import length_loss, peak_loss
from simsearch.training.orthogonal import OrthogonalMomentum
from simsearch.training.response_norm import make_fast
from simsearch.training.similarity_queue import SimilarityQueue

if TYPE_CHECKING:
    from collections.abc import Iterator

FC6 = larger_input.FIRST_HIDDEN
TOLD = 10  # steps between two rows of the log


@dataclass(frozen=True)
class Config:
    """How a training goes. The rate rises over `warmup` steps, stays, and falls linearly over the last `cooldown`."""

    objective: str = "teacher"
    image_size: int = 128
    batch: int = 256
    rate: float = 0.1
    warmup: int = 60
    steps: int = 1_000_000
    cooldown: int = 0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip: float = 5.0
    dropout: float = 0.1
    first_layer: float = 0.01  # deviation that the first layer's kernels are drawn with
    queue: int = 8192
    temperature: float = 0.06
    soft_labels: float = 0.3
    soft_temperature: float = 2.0
    lengths: float = 5.0
    peaks: float = 0.0  # weight of `peak_loss`
    regression: float = 0.0  # weight of 1 - cosine between the teacher's features and a linear map of the student's
    orthogonal: float = 0.0  # above 0, convolutions learn by `OrthogonalMomentum` with this share
    smallest_patch: float = 0.35
    colour: float = 0.1
    coarse: float = 0.0  # share of pictures that the student, not the teacher, sees without their fine detail
    mixup: float = 0.0  # share of pictures that are mixed with another one, for student and teacher (Zhang et al. 2018)
    noise: float = 0.0  # share of pictures that the student, not the teacher, sees with noise over them
    compress: bool = False
    keep_convolution: float = 0.8
    keep_hidden: float = 0.5
    keep_classifier: float = 0.6
    seed: int = 2012


class Outputs(nn.Module):
    """Both outputs of a network: (B, 3, S, S) to (B, D) features and (B, 1000) logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.network.features(x)
        return features, self.network.classifier(features)


def build(config: Config) -> nn.Module:
    """AlexNet with normalisations, its first layer drawn small so that what is drawn does not stay in its kernels."""
    torch.manual_seed(config.seed)
    network = build_network("alexnet", AlexNetConfig(num_classes=len(CLASSES), image_size=config.image_size))
    network.initialise(math.sqrt(2))
    nn.init.normal_(network.conv[0].weight, std=config.first_layer)
    batch_norm.add(network)
    return network


def build_from(path: Path, config: Config, pictures: Pictures, batches: int = 8) -> nn.Module:
    """The same from weights without normalisations: their function at first, but for the classifier of other classes.

    If `image_size` is larger than that of the weights, the first hidden layer grows with the convolutions' output.

    batches: how many batches of 256 pictures the statistics of the normalisations are taken from.
    """
    torch.manual_seed(config.seed)
    network = build_network("alexnet", AlexNetConfig(num_classes=len(CLASSES), image_size=config.image_size))
    network.initialise(math.sqrt(2))
    tensors = {name: torch.from_numpy(value) for name, value in weights.read_tensors(path).items()}
    if tensors["classifier.weight"].shape != network.classifier.weight.shape:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier")}
    first = larger_input.enlarged(tensors[FC6].numpy(), network.config.channels[-1], network.config.flat)
    tensors[FC6] = torch.from_numpy(first)
    network.load_state_dict(tensors, strict=False)
    random = np.random.default_rng(config.seed)
    drawn = [torch.from_numpy(pictures.draw(256, random)[0]) for _ in range(batches)]
    set_dropout(network, 0.0)
    batch_norm.adopt(network, [augment.centre(batch, config.image_size, COLOUR) for batch in drawn])
    with torch.no_grad():
        first = network.conv[0]
        scale = config.first_layer / first.layer.weight.std()
        first.layer.weight.mul_(scale)
        first.norm.running_mean.mul_(scale)
        first.norm.running_var.mul_(scale**2)
    return network


def set_dropout(network: nn.Module, share: float) -> None:
    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = share


def make_optimizer(network: nn.Module, config: Config) -> torch.optim.Optimizer:
    """SGD; weights decay, biases and normalisations do not."""
    named = list(network.named_parameters())
    decaying = [p for name, p in named if name.endswith("weight") and ".norm." not in name]
    others = [p for name, p in named if not (name.endswith("weight") and ".norm." not in name)]
    groups = [{"params": decaying, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=config.rate, momentum=config.momentum, nesterov=True, fused=True)


def convolutions(network: nn.Module) -> list[nn.Parameter]:
    """The kernels (C, D, H, W) of the layers that a normalisation follows."""
    layers = [module.layer for module in network.modules() if isinstance(module, batch_norm.Normalised)]
    return [layer.weight for layer in layers if isinstance(layer, nn.Conv2d)]


def learning_rate(config: Config, step: int) -> float:
    """The rate of a step: warm-up, stable, decay (Hu et al., MiniCPM, 2024)."""
    left = (config.steps - step) / config.cooldown if config.cooldown else 1.0
    return config.rate * min(1.0, left) * min(1.0, (step + 1) / config.warmup)


def precision() -> torch.autocast:
    """The context of the network: bfloat16 if the processor has instructions for it, which is many times faster, or
    else float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=has_bf16(torch.device("cpu")))


def soft_label_loss(logits: torch.Tensor, taught: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 times the divergence of two softmaxes at temperature T (Hinton et al. 2015), a scalar."""
    near, target = (logits.float() / temperature).log_softmax(1), (taught / temperature).log_softmax(1)
    return temperature**2 * F.kl_div(near, target, reduction="batchmean", log_target=True)


class Head(nn.Module):
    """A linear map from the student's features (B, D) to the teacher's (B, T), for training only, and its optimizer.

    Navaneet et al.: "SimReg", BMVC 2021: plain regression of a teacher's features teaches as well as likenesses do.
    """

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        self.linear = nn.Linear(student, teacher)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, nesterov=True)

    def forward(self, features: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
        """The mean of 1 - cosine, a scalar."""
        with precision():
            guess = self.linear(F.normalize(features.float(), dim=1))
        return 1 - F.cosine_similarity(guess.float(), taught, dim=1).mean()

    @torch.no_grad()
    def fit(self, features: torch.Tensor, taught: torch.Tensor, ridge: float = 0.02) -> None:
        """Begins with the ridge regression of N pictures: features (N, D), the teacher's (N, T)."""
        x, y = F.normalize(features.float(), dim=1), F.normalize(taught, dim=1)
        gram = x @ x.T
        gram += ridge * gram.diagonal().mean() * torch.eye(len(gram))
        self.linear.weight.copy_((x.T @ torch.linalg.solve(gram, y)).T)

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class Training:
    """Everything that a checkpoint holds."""

    def __init__(self, config: Config, pictures: Pictures, network: nn.Module, width: int) -> None:
        self.config, self.pictures, self.network = config, pictures, network
        set_dropout(network, config.dropout)
        self.optimizer = make_optimizer(network, config)
        self.kernels = OrthogonalMomentum(convolutions(network), config.orthogonal) if config.orthogonal else None
        self.head = Head(network.config.hidden, width) if config.regression else None
        self.queue = SimilarityQueue(config.queue, network.config.hidden, width, config.temperature)
        self.mean = torch.zeros(width)  # of the teacher's features
        self.drawn = dict(pictures.drawn)  # by the steps taken; the pictures of the next step are drawn before it
        self.step, self.images, self.seconds = 0, 0, 0.0
        self.compressor: Compressor | None = None
        self.first = 0  # step at which the compression began

    def compress(self) -> None:
        """Prunes and shares from here on; for a network whose normalisations have been folded."""
        shares = {name: getattr(self.config, name) for name in ("keep_convolution", "keep_hidden", "keep_classifier")}
        plan = TrainConfig(prune_from=0.0, prune_until=0.3, share_from=0.5, **shares)
        self.compressor, self.first = Compressor(self.network, plan), self.step

    def save(self, path: Path) -> None:
        content = {
            "config": asdict(self.config),
            "network": self.network.state_dict(),
            "queue": self.queue.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "mean": self.mean,
            "kernels": self.kernels.state_dict() if self.kernels else None,
            "head": [self.head.state_dict(), self.head.optimizer.state_dict()] if self.head else None,
            "drawn": self.drawn,
            "numbers": [self.step, self.images, self.first],
            "seconds": self.seconds,
            "compressor": self.compressor.state() if self.compressor else None,
        }
        with replacing(path) as file:
            torch.save(content, file)

    def restore(self, content: dict[str, Any], whole: bool) -> None:
        """Takes up a checkpoint; but for `whole`, another's weights and queue, without its optimizer."""
        self.network.load_state_dict(content["network"])
        self.queue.load_state_dict(content["queue"])
        self.mean, self.seconds = content["mean"], content["seconds"]
        self.step, self.images, self.first = content["numbers"]
        self.pictures.drawn |= {name: n for name, n in content["drawn"].items() if name in self.pictures.drawn}
        self.drawn = dict(self.pictures.drawn)
        if self.head and content.get("head"):
            self.head.load_state_dict(content["head"][0])
            self.head.optimizer.load_state_dict(content["head"][1])
        if whole:
            self.optimizer.load_state_dict(content["optimizer"])
            if self.kernels and content.get("kernels"):
                self.kernels.load_state_dict(content["kernels"])
            if self.config.compress:
                self.compress()
                self.first = content["numbers"][2]
                self.compressor.restore(content["compressor"])


def begin(config: Config, options: argparse.Namespace, pictures: Pictures, width: int) -> Training:
    """A training from its own checkpoint, from another's, from weights, or from nothing."""
    own = options.work / "checkpoint.pt"
    other = options.start / "checkpoint.pt" if options.start else None
    begun = own if own.exists() else other
    if begun is None:
        network = build_from(options.begin, config, pictures) if options.begin else build(config)
        return Training(config, pictures, network.to(memory_format=torch.channels_last), width)
    content = torch.load(begun, weights_only=True)
    if not own.exists() and options.more:
        config = replace(config, steps=content["numbers"][0] + options.more)
    elif own.exists() and options.more:
        config = replace(config, steps=content["config"]["steps"])
    network = build(config)
    if content["config"]["compress"]:
        batch_norm.fold(network)
    training = Training(config, pictures, network.to(memory_format=torch.channels_last), width)
    going_on = own.exists() or not config.compress
    training.restore(content, going_on)
    if config.compress and not own.exists():
        batch_norm.fold(network)
        training.optimizer = make_optimizer(network.to(memory_format=torch.channels_last), config)
        training.compress()
    return training


def step_of(training: Training, forward: Any, batch: Batch) -> dict[str, float]:
    """One step; the parts of its loss, and how often student and teacher (or label) have the same first guess."""
    config = training.config
    torch.manual_seed(config.seed * 1_000_033 + training.step)  # dropout
    for group in training.optimizer.param_groups:
        group["lr"] = learning_rate(config, training.step)
    with precision():
        features, logits = forward(batch.shown)
    parts = {"even": config.lengths * length_loss(features)}
    if config.peaks:
        parts["peaks"] = config.peaks * peak_loss(features)
    labels = batch.labels
    if batch.taught is None or batch.soft is None:
        parts["labels"] = F.cross_entropy(logits.float(), labels)
    else:
        training.mean += (batch.taught.mean(0) - training.mean) * max(0.005, 1 / (training.step + 1))
        taught = batch.taught - training.mean
        parts["alike"] = training.queue(features, taught)
        parts["soft"] = config.soft_labels * soft_label_loss(logits, batch.soft, config.soft_temperature)
        if training.head:
            parts["cosine"] = config.regression * training.head(features, taught)
        labels = batch.soft.argmax(1)
    sum(parts.values()).backward()
    if batch.taught is not None:
        training.queue.add(features, batch.taught - training.mean)
    if training.kernels:
        training.kernels.step(learning_rate(config, training.step))
    norm = nn.utils.clip_grad_norm_(training.network.parameters(), config.clip)
    if training.head:
        training.head.step()
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)
    training.step, training.images = training.step + 1, training.images + config.batch
    training.drawn = batch.drawn
    if training.compressor:
        training.compressor.after(training.step - training.first, config.steps - training.first)
    agree = (logits.argmax(1) == labels).float().mean()
    return {name: float(value.detach()) for name, value in {**parts, "agree": agree, "norm": norm}.items()}


@torch.no_grad()
def fit_head(training: Training, teacher: Teacher, batches: int = 24) -> None:
    """Begins the regression with what the student's features tell of the teacher's already."""
    assert training.head is not None
    config, random, found = training.config, np.random.default_rng(training.config.seed), []
    drawn = dict(training.pictures.drawn)
    training.network.eval()
    for _ in range(batches):
        pixels = torch.from_numpy(training.pictures.draw(config.batch, random)[0])
        x = augment.centre(pixels, config.image_size, COLOUR)
        with precision():
            features = training.network.features(x)
        found.append((features, teacher.of_centres(pixels)[0]))
    training.pictures.drawn = drawn
    learnt, taught = (torch.cat(part) for part in zip(*found, strict=True))
    if not training.step:
        training.mean.copy_(taught.mean(0))
    training.head.fit(learnt, taught - training.mean)
    training.network.train()


def train(config: Config, options: argparse.Namespace) -> None:
    """The loop."""
    options.work.mkdir(parents=True, exist_ok=True)
    pictures = Pictures(options.pictures, config.objective == "labels")
    teacher = Teacher(options.teacher) if config.objective == "teacher" else None
    training = begin(config, options, pictures, teacher.width if teacher else 1)
    config = training.config
    views = TrainConfig(patches="scaled", smallest_patch=config.smallest_patch, colour=config.colour)
    if options.compile:
        make_fast(training.network)
    forward = Outputs(training.network)
    print(f"{len(pictures):,} pictures of {len(pictures.names)} sources; from step {training.step}", flush=True)
    known = training.step or options.begin
    if teacher and training.head and known and not training.head.linear.weight.any():
        fit_head(training, teacher)
    stopping: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: stopping.append(number))
    try:
        loop(training, forward, batches(config, pictures, teacher, views, training.step), options, stopping)
    finally:
        signal.signal(signal.SIGTERM, before)


def loop(
    training: Training,
    forward: Any,
    source: Iterator[Batch],
    options: argparse.Namespace,
    stopping: list[int],
) -> None:
    """Trains to the last step, or until `stopping` has an item; writes checkpoints and the log."""
    config, checkpoint = training.config, options.work / "checkpoint.pt"
    training.network.train()
    saved = told = time.monotonic()
    sums: dict[str, float] = {}
    while training.step < config.steps:
        for name, value in step_of(training, forward, next(source)).items():
            sums[name] = sums.get(name, 0.0) + value / TOLD
        now = time.monotonic()
        if training.step % TOLD == 0:
            training.seconds += now - told
            row = {
                "step": training.step,
                "images": training.images,
                "minutes": round(training.seconds / 60, 2),
                **{name: round(value, 4) for name, value in sums.items()},
                "rate": round(TOLD * config.batch / (now - told), 1),
                "learning_rate": round(training.optimizer.param_groups[0]["lr"], 6),
                "clock": time.strftime("%H:%M:%S"),
            }
            with (options.work / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            if not math.isfinite(sum(sums.values())):
                sys.exit(f"the loss is no number by step {training.step}; the last checkpoint remains")
            told, sums = now, {}
        if now - saved > 60 * options.save_minutes or stopping or training.step >= config.steps:
            training.save(checkpoint)
            saved = time.monotonic()
        if stopping:
            sys.exit(75)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--teacher", type=Path, help="an ONNX file; needed to train unless by labels")
    parser.add_argument("--start", type=Path, help="the work folder of a training to branch off from")
    parser.add_argument("--more", type=int, help="so many steps beyond --start, instead of --steps")
    parser.add_argument("--begin", type=Path, help="weights trained without normalisation to begin with")
    parser.add_argument("--save-minutes", type=float, default=4.0)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    for field in fields(Config):
        name = f"--{field.name.replace('_', '-')}"
        if field.name == "objective":
            parser.add_argument(name, choices=["teacher", "labels"], default=field.default)
        elif field.name == "compress":
            parser.add_argument(name, action="store_true")
        else:
            parser.add_argument(name, type=type(field.default), default=field.default)
    options = parser.parse_args()
    config = Config(**{field.name: getattr(options, field.name) for field in fields(Config)})
    if config.objective == "teacher" and options.teacher is None:
        parser.error("--teacher is needed, or --objective labels")
    if config.objective == "labels" and config.mixup:
        parser.error("--mixup is for a teacher, who sees the mixed pictures; labels are not mixed")
    train(config, options)


if __name__ == "__main__":
    main()
