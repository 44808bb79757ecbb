#!/usr/bin/env python3
"""Trains the AlexNet that ships, from pictures without labels and a teacher.

    scripts/reproduce/weights.py PICTURES WORK --teacher TEACHER.onnx [--steps N] [--NAME VALUE ...]

PICTURES is a folder of `NAME.npy`, (N, P, P, 3) uint8 (`scripts/reproduce/pictures.py` makes them), and `weights.tsv`
(name, share of the batches). WORK gets `checkpoint.pt` every few minutes and `log.jsonl`; the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from torch import nn

from simsearch import augment
from simsearch.augment import Colour
from simsearch.models import networks, weights
from simsearch.models.configs import AlexNetConfig
from simsearch.presets import TrainConfig
from simsearch.training import batch_norm
from simsearch.training.similarity_queue import SimilarityQueue


@dataclass(frozen=True)
class Config:
    """How a training goes. The rate rises over `warmup` steps, stays, and falls linearly over the last `cooldown`."""

    image_size: int = 128
    batch: int = 256
    rate: float = 0.1
    warmup: int = 60
    steps: int = 1_000_000
    cooldown: int = 0
    last_rate: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip: float = 5.0
    dropout: float = 0.1
    first_layer: float = 0.01
    queue: int = 8192
    temperature: float = 0.06
    soft_labels: float = 0.3
    soft_temperature: float = 2.0
    lengths: float = 5.0
    smallest_patch: float = 0.35
    colour: float = 0.1
    seed: int = 2012
    save_minutes: float = 4.0


class Pictures:
    """Shards of pictures, drawn by share: each shard in an order of its own, anew when it is through."""

    def __init__(self, folder: Path) -> None:
        rows = [line.split("\t") for line in (folder / "weights.tsv").read_text().splitlines() if line]
        self.names = [row[0] for row in rows]
        shares = np.array([float(row[1]) for row in rows])
        self.shares = shares / shares.sum()
        self.shards = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in self.names]
        self.drawn = dict.fromkeys(self.names, 0)

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    def draw(self, count: int, random: np.random.Generator) -> np.ndarray:
        """(count, P, P, 3) uint8."""
        found = []
        for name, shard, many in zip(self.names, self.shards, random.multinomial(count, self.shares), strict=True):
            for place in range(self.drawn[name], self.drawn[name] + many):
                found.append(shard[self._row(name, len(shard), place)])
            self.drawn[name] += int(many)
        return np.stack(found)

    def _row(self, name: str, size: int, place: int) -> int:
        """Row number `place` of an endless sequence of permutations: a pass is the same for every run."""
        turn, place = divmod(place, size)
        key = (name, size, turn)
        if getattr(self, "_key", {}).get(name) != key:
            order = np.random.default_rng((turn, *name.encode())).permutation(size)
            self._key = {**getattr(self, "_key", {}), name: key}
            self._order = {**getattr(self, "_order", {}), name: order}
        return int(self._order[name][place])


class Teacher:
    """A network that is run on what the student sees: ONNX with `x` (B, 3, S, S), `features` and `logits`."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.side = self.session.get_inputs()[0].shape[2]
        self.width = self.session.get_outputs()[0].shape[1]

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, S, S) on the 0 to 255 scale to features (B, T) and logits (B, 1000)."""
        x = ((x - 127) / 128).contiguous().numpy()
        parts = [self.session.run(["features", "logits"], {"x": x[n : n + 32]}) for n in range(0, len(x), 32)]
        features, logits = (torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True))
        return features, logits


class Outputs(nn.Module):
    """Features and logits of a network in one call."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.network.features(x)
        return features, self.network.classifier(features)


COLOUR = Colour(
    torch.tensor([122.5, 115.5, 102.7]), torch.tensor([67.4, 65.8, 69.7]),
    torch.tensor([[6.2, -24.7, -63.1], [-12.4, -0.3, -66.0], [6.3, 23.4, -67.6]]),
)  # fmt: skip
"""Of Imagenette and Tiny-ImageNet; fixed, so that a set of pictures may grow while a training goes on."""


def build(config: Config, weights_file: Path | None = None, pictures: Pictures | None = None) -> nn.Module:
    """AlexNet with normalisations, its first layer drawn small; or from weights that were trained without."""
    torch.manual_seed(config.seed)
    network = networks.make("alexnet", AlexNetConfig(num_classes=1000, image_size=config.image_size))
    network.initialise(math.sqrt(2))
    nn.init.normal_(network.conv[0].weight, std=config.first_layer)
    for layer in network.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = config.dropout
    if weights_file is None:
        batch_norm.add(network)
    else:
        tensors = {name: torch.from_numpy(value) for name, value in weights.read_tensors(weights_file).items()}
        network.load_state_dict({n: t for n, t in tensors.items() if not n.startswith("classifier")}, strict=False)
        random = np.random.default_rng(config.seed)
        batches = [augment.centre(torch.from_numpy(pictures.draw(256, random)), config.image_size, COLOUR)
                   for _ in range(8)]  # fmt: skip
        for layer in network.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
        batch_norm.adopt(network, batches)
        for layer in network.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = config.dropout
        with torch.no_grad():  # small, so that the kernels soon become what they learn and not what they were
            kernels = network.conv[0].layer.weight
            kernels.mul_(config.first_layer / kernels.std())
    return network.to(memory_format=torch.channels_last)


def learning_rate(config: Config, step: int) -> float:
    """Warm-up, stable, decay (Hu et al., MiniCPM, 2024)."""
    left = (config.steps - step) / config.cooldown if config.cooldown else 1.0
    fall = config.last_rate + (config.rate - config.last_rate) * min(1.0, left)
    return fall * min(1.0, (step + 1) / config.warmup)


def losses(config: Config, queue, features, logits, mean, taught, soft) -> dict[str, torch.Tensor]:
    """The parts of the loss, weighed, of a batch."""
    lengths = features.float().norm(dim=1)
    t = config.soft_temperature
    kl = F.kl_div((logits.float() / t).log_softmax(1), (soft / t).log_softmax(1), reduction="batchmean",
                  log_target=True)  # fmt: skip
    return {"alike": queue(features, taught - mean), "soft": config.soft_labels * t * t * kl,
            "even": config.lengths * lengths.var() / lengths.mean().square().clamp(min=1e-6)}  # fmt: skip


def save(path: Path, config: Config, step: int, seconds: float, network, optimizer, queue, mean, pictures) -> None:
    content = {"config": asdict(config), "step": step, "seconds": seconds, "network": network.state_dict(),
               "optimizer": optimizer.state_dict(), "queue": queue.state_dict(), "mean": mean,
               "drawn": pictures.drawn}  # fmt: skip
    torch.save(content, path.with_suffix(".partial"))
    os.replace(path.with_suffix(".partial"), path)


def train(config: Config, folder: Path, work: Path, teacher: Teacher, start: Path | None, begin: Path | None) -> None:
    work.mkdir(parents=True, exist_ok=True)
    pictures, checkpoint = Pictures(folder), work / "checkpoint.pt"
    begun = checkpoint if checkpoint.exists() else start
    network = build(config, None if begun else begin, pictures)
    named = list(network.named_parameters())
    decayed = [p for n, p in named if n.endswith("weight") and "norm" not in n]
    others = [p for n, p in named if not (n.endswith("weight") and "norm" not in n)]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.rate, momentum=config.momentum, nesterov=True, fused=True,
    )  # fmt: skip
    queue = SimilarityQueue(config.queue, network.config.hidden, teacher.width, config.temperature)
    mean = torch.zeros(teacher.width)
    step, seconds = 0, 0.0
    if begun:
        content = torch.load(begun, weights_only=True)
        network.load_state_dict(content["network"])
        optimizer.load_state_dict(content["optimizer"])
        if content["queue"]["teachers"].shape == queue.teachers.shape:
            queue.load_state_dict(content["queue"])
            mean = content["mean"]
        pictures.drawn |= {name: n for name, n in content["drawn"].items() if name in pictures.drawn}
        step, seconds = content["step"], content["seconds"]
    colour = COLOUR
    views = TrainConfig(patches="scaled", smallest_patch=config.smallest_patch, colour=config.colour)
    forward = torch.compile(Outputs(network))
    log = (work / "log.jsonl").open("a", buffering=1)
    print(f"{len(pictures):,} pictures in {len(pictures.shards)} shards; from step {step}", flush=True)
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
    network.train()
    sums: dict[str, float] = {}
    times = dict.fromkeys(("data", "teacher", "student"), 0.0)
    saved = told = time.monotonic()
    while step < config.steps:
        clock = time.monotonic()
        random = np.random.default_rng((config.seed, step))
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        torch.manual_seed(config.seed * 1_000_033 + step)  # dropout
        pixels = torch.from_numpy(pictures.draw(config.batch, random))
        seen = augment.draw(config.batch, pixels.shape[1], config.image_size, views, generator)
        x = augment.apply(seen, pixels, config.image_size, colour)
        times["data"] += time.monotonic() - clock
        clock = time.monotonic()
        raw = x * colour.deviation[:, None, None] + colour.mean[:, None, None]
        if teacher.side != config.image_size:
            raw = F.interpolate(raw, (teacher.side, teacher.side), mode="bicubic", align_corners=False)
        taught, soft = teacher(raw)
        mean = mean + (taught.mean(0) - mean) * max(0.005, 1 / (step + 1))
        times["teacher"] += time.monotonic() - clock
        clock = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        with torch.autocast("cpu", torch.bfloat16):
            features, logits = forward(x)
        parts = losses(config, queue, features, logits, mean, taught, soft)
        sum(parts.values()).backward()
        queue.add(features, taught - mean)
        norm = nn.utils.clip_grad_norm_(network.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times["student"] += time.monotonic() - clock
        step += 1
        agree = (logits.argmax(1) == soft.argmax(1)).float().mean()
        for name, value in {**parts, "agree": agree, "norm": norm}.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        if step % 10 == 0:
            now = time.monotonic()
            row = {"step": step, "images": step * config.batch, "minutes": round((seconds + now - told) / 60, 2),
                   **{name: round(value / 10, 4) for name, value in sums.items()},
                   "rate": round(10 * config.batch / (now - told), 1), "lr": round(group["lr"], 5),
                   **{name: round(value, 1) for name, value in times.items()}, "clock": time.strftime("%H:%M:%S")}  # fmt: skip
            if not math.isfinite(row["alike"]):
                sys.exit(f"the loss is no number by step {step}")
            log.write(json.dumps(row) + "\n")
            seconds, told, sums = seconds + now - told, now, {}
            times = dict.fromkeys(times, 0.0)
        if time.monotonic() - saved > 60 * config.save_minutes or stopping or step == config.steps:
            save(checkpoint, config, step, seconds, network, optimizer, queue, mean, pictures)
            saved = time.monotonic()
        if stopping:
            sys.exit(75)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="a checkpoint to branch off from")
    parser.add_argument("--begin", type=Path, help="weights trained without normalisation to begin with")
    parser.add_argument("--more", type=int, help="so many steps beyond the checkpoint, instead of --steps")
    for field in fields(Config):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    options = parser.parse_args()
    config = Config(**{field.name: getattr(options, field.name) for field in fields(Config)})
    if options.more and options.start:
        begun = torch.load(options.start, weights_only=True, mmap=True)["step"]
        config = replace(config, steps=begun + options.more)
    train(config, options.pictures, options.work, Teacher(options.teacher), options.start, options.begin)


if __name__ == "__main__":
    main()
