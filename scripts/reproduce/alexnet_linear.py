#!/usr/bin/env python3
"""Trains the last layers of AlexNet further, so that Euclidean distances of its plain features rank better.

    scripts/reproduce/alexnet_linear.py SETS FILE.safetensors WORK --teacher TEACHER [--views 26000] [--processes 2]
    scripts/reproduce/alexnet_file.py SETS WORK new.safetensors --data DATA --image-size 192

Features retrieve better once they are scaled to unit length, centred, whitened (each principal component divided by the
root of its deviation; Jégou & Chum, ECCV 2012) and scaled to unit length again. What ships has no layer for that, and
needs none: the last hidden layer can learn features whose plain distances rank in this way. Besides, it learns the
likenesses of the teacher's features, whitened too. The target of two pictures is the weighted mean of both cosines.

FILE is a weights file for a larger input than in its training. Views of the pictures of SETS (crops, reflections,
colours) go through its convolutions and through the teacher once, and are kept in WORK/views-N.npz, one file for each
process; files that are there already are used. Then the layer learns: for each picture of a batch, the distribution
over the others by the distances of their features approaches that by the target (as in CompRess, NeurIPS 2020, but by
distances). The classifier learns to go on giving FILE's guesses. Meanwhile both are pruned and shared, the last hidden
layer with 127 values: what it learns is finer than the 31 values of `alexnet.py --compress`, which lost most of it.
With --both the first hidden layer learns too.

WORK/checkpoint.pt is what `alexnet_file.py` and `judge.py` read. P@6 on the sets for choices is printed on the way.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import numpy as np
import torch
import torch.nn.functional as F
from alexnet import CLASSES, Config
from alexnet_views import Pictures, Teacher
from judge import choices
from PIL import Image
from torch import nn

from simsearch.common.atomic_files import replacing
from simsearch.evaluation.metrics import LabelledFeatures, retrieval
from simsearch.indexing import learn_components
from simsearch.models import larger_input, weights
from simsearch.models.descriptors import unit
from simsearch.models.load import load_model
from simsearch.models.networks.build import build_network
from simsearch.models.networks.configs import AlexNetConfig
from simsearch.training import compression
from simsearch.training.config import TrainConfig

BATCH, TOGETHER = 512, 64
BITS = 7
"""A weight of the last hidden layer is one of 127 values."""

COMPONENTS = {"own": (1024, 0.5), "taught": (256, 0.25)}
"""Principal components of the own and of the teacher's features, and the power of their deviations to divide by."""


def view(picture: np.ndarray, side: int, random: np.random.Generator) -> np.ndarray:
    """A part of a picture (P, P, 3) uint8, of 0.45 to 1 of its area, as (side, side, 3) uint8; half are reflected, and
    half have other colours."""
    whole = len(picture)
    edge = round(whole * math.sqrt(random.uniform(0.45, 1)))
    left, top = random.integers(0, whole - edge + 1, 2)
    part = Image.fromarray(picture).crop((left, top, left + edge, top + edge))
    part = part.resize((side, side), Image.Resampling.BILINEAR)
    if random.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = np.asarray(part)
    if random.random() < 0.5:
        gains = random.uniform(0.8, 1.2) * random.uniform(0.92, 1.08, 3)
        pixels = np.clip(pixels * gains + random.uniform(-12, 12), 0, 255).astype(np.uint8)
    return pixels


def first_inputs(maps: np.ndarray, side: int) -> np.ndarray:
    """What the first hidden layer gets of the last convolution's maps (B, C, H, W), for weights that were trained for
    maps of `side`: (B, C * side * side) float32. `larger_input` enlarges the weights instead, with equal products."""
    last = (maps.shape[2] - 3) // 2 + 1
    places = [slice(n, n + 2 * last - 1, 2) for n in range(3)]
    pooled = np.max([maps[:, :, rows, columns] for rows in places for columns in places], 0)
    between = larger_input.interpolation(side, last)
    return np.einsum("yi,bcyx,xj->bcij", between, pooled, between, optimize=True).reshape(len(maps), -1)


def make_views(task: tuple[argparse.Namespace, int, int]) -> None:
    """Writes WORK/views-N.npz: x, what the first hidden layer gets; fc7, its features; teach, the teacher's."""
    options, part, count = task
    random = np.random.default_rng(50 + part)
    pictures, teacher, model = Pictures(options.pictures), Teacher(options.teacher), load_model(str(options.file))
    found: dict[str, list[np.ndarray]] = {"x": [], "fc7": [], "teach": []}
    began = time.monotonic()
    for start in range(0, count, TOGETHER):
        drawn = pictures.draw(min(TOGETHER, count - start), random)[0]
        pixels = np.stack([view(picture, model.recipe.crop, random) for picture in drawn])
        features, maps = model.outputs(["features", "conv5"], pixels)
        seen = F.interpolate(
            torch.from_numpy((pixels.astype(np.float32) - 127) / 128).permute(0, 3, 1, 2),
            teacher.side,
            mode="bilinear",
            align_corners=False,
        )
        for name, rows in (
            ("x", first_inputs(maps, options.side)),
            ("fc7", features),
            ("teach", teacher(seen)[0].numpy()),
        ):
            found[name].append(rows.astype(np.float16))
        if start % (20 * TOGETHER) == 0:
            print(f"part {part}: {start:,} of {count:,} views, {time.monotonic() - began:.0f} s", flush=True)
    with replacing(options.work / f"views-{part}.npz") as file:
        np.savez(file, **{name: np.concatenate(rows) for name, rows in found.items()})


def whitened(features: np.ndarray, components: int, power: float) -> torch.Tensor:
    """Features (N, D) at unit length, centred, whitened, and at unit length again: (N, components) float32."""
    x = unit(features.astype(np.float32))
    return torch.from_numpy(unit(learn_components.whitened(x, components, power)(x)))


def log_shares(near: torch.Tensor) -> torch.Tensor:
    """The logarithm of each picture's distribution over the others, from nearnesses (B, B)."""
    return near.masked_fill(torch.eye(len(near), dtype=torch.bool), -1e4).log_softmax(1)


def distances(features: torch.Tensor) -> torch.Tensor:
    """Squared distances (B, B) of features (B, D), in units of their mean."""
    lengths = features.square().sum(1)
    squared = lengths[:, None] + lengths[None] - 2 * features @ features.T
    return squared / squared.mean()


def begin(path: Path) -> nn.Module:
    """The network of a weights file, for input of the size that it was trained with."""
    card = weights.read_card(path)
    arguments = {**card.arguments, "image_size": card.trained_at}
    network = build_network("alexnet", AlexNetConfig(**arguments))
    tensors = {name: torch.from_numpy(value) for name, value in weights.read_tensors(path, as_trained=True).items()}
    network.load_state_dict(tensors)
    return network.eval()


def judged(network: nn.Module, known: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> str:
    """P@6 on each set for choices, and the means of the first three and of all. known: name, inputs, labels."""
    found = []
    for _, x, labels in known:
        with torch.no_grad():
            rows = network.hidden(torch.from_numpy(x)).numpy()
        found.append(float(np.mean(retrieval(LabelledFeatures(rows, labels))["P@6"])))
    each = ", ".join(f"{name} {value:.3f}" for (name, *_), value in zip(known, found, strict=True))
    return f"{each}; mean of three {np.mean(found[:3]):.4f}, of all {np.mean(found):.4f}"


def train(options: argparse.Namespace, parts: Sequence[Path]) -> None:
    """Trains the last layers on the views of the files `parts`."""
    views = [np.load(part) for part in parts]
    x, features, taught = (np.concatenate([view[name] for view in views]) for name in ("x", "fc7", "teach"))
    own, other = whitened(features, *COMPONENTS["own"]), whitened(taught, *COMPONENTS["taught"])
    network, known = begin(options.file), list(known_sets(options))
    network.conv.requires_grad_(False)
    network.hidden[1].requires_grad_(options.both)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    with torch.no_grad():
        logits = network.classifier(torch.from_numpy(features.astype(np.float32))).half()
    sharpness = nn.Parameter(torch.tensor(math.log(8.0)))
    optimizer = torch.optim.SGD([*parameters, sharpness], options.rate, momentum=0.9, nesterov=True)
    config = Config(compress=True)
    shares = {name: getattr(config, name) for name in ("keep_convolution", "keep_hidden", "keep_classifier")}
    compressor = compression.Compressor(network, TrainConfig(prune_from=0.0, prune_until=0.3, share_from=0.4, **shares))
    compressor.parameters = {name: p for name, p in compressor.parameters.items() if p.requires_grad}
    compressor.final = {name: compressor.final[name] for name in compressor.parameters}
    steps, began = options.passes * (len(x) // BATCH), time.monotonic()
    print(f"{len(x):,} views, {steps} steps; at first: {judged(network, known)}", flush=True)
    sums: dict[str, float] = {}
    random = torch.Generator().manual_seed(options.seed)
    for step in range(steps):
        if step % (len(x) // BATCH) == 0:
            order = torch.randperm(len(x), generator=random)
        rows = order[step % (len(x) // BATCH) * BATCH :][:BATCH].numpy()
        for group in optimizer.param_groups:
            group["lr"] = options.rate * min(1, (step + 1) / 20) * (1 + math.cos(math.pi * step / steps)) / 2
        output = network.hidden(torch.from_numpy(x[rows].astype(np.float32)))
        guesses = network.classifier(output)
        target = (1 - options.teaching) * own[rows] @ own[rows].T + options.teaching * other[rows] @ other[rows].T
        near = log_shares(-distances(output) * sharpness.exp())
        alike = F.kl_div(near, log_shares(target / options.temperature), reduction="batchmean", log_target=True)
        before = logits[rows].float().log_softmax(1)
        same = F.kl_div(guesses.log_softmax(1), before, reduction="batchmean", log_target=True)
        optimizer.zero_grad()
        (alike + options.guesses * same).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        compressor.after(step + 1, steps)
        for name, value in {"alike": alike, "guesses": same, "sharpness": sharpness.exp()}.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach()) / 10
        if (step + 1) % 10 == 0:
            told = ", ".join(f"{name} {value:.4f}" for name, value in sums.items())
            print(f"step {step + 1}: {told}; {time.monotonic() - began:.0f} s", flush=True)
            sums = {}
        if (step + 1) % (len(x) // BATCH) == 0:
            print(f"after {(step + 1) * BATCH:,} views: {judged(network, known)}", flush=True)
    story: dict[str, Any] = {
        "config": asdict(Config(image_size=network.config.image_size, compress=True)),
        "network": network.state_dict(),
        "numbers": [steps, steps * BATCH, 0],
        "seconds": time.monotonic() - began,
    }
    with replacing(options.work / "checkpoint.pt") as file:
        torch.save(story, file)


def known_sets(options: argparse.Namespace) -> Any:
    """Yields (name, inputs of the first hidden layer, labels) of the sets for choices."""
    model = load_model(str(options.file))
    for name, data in choices(options.pictures):
        parts = []
        for start in range(0, len(data.pixels), TOGETHER):
            pictures = [Image.fromarray(picture) for picture in data.pixels[start : start + TOGETHER]]
            pixels = np.stack([model.recipe.pixels(picture) for picture in pictures])
            parts.append(first_inputs(model.outputs(["conv5"], pixels)[0], options.side).astype(np.float32))
        yield name, np.concatenate(parts), data.labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, metavar="SETS")
    parser.add_argument("file", type=Path, metavar="FILE.safetensors")
    parser.add_argument("work", type=Path, metavar="WORK")
    parser.add_argument("--teacher", type=Path, required=True, help="an ONNX file by teacher.py")
    parser.add_argument("--views", type=int, default=26_000, help="how many views to make")
    parser.add_argument("--processes", type=int, default=2, help="processes that make them")
    parser.add_argument("--passes", type=int, default=6, help="how often each view is learned from")
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--teaching", type=float, default=0.3, help="share of the teacher in the target")
    parser.add_argument("--temperature", type=float, default=0.1)
    parser.add_argument("--both", action="store_true", help="the first hidden layer learns as well")
    parser.add_argument("--guesses", type=float, default=0.3, help="weight of the classifier's loss")
    parser.add_argument("--seed", type=int, default=2012)
    options = parser.parse_args()
    compression.BITS["hidden"] = BITS
    options.work.mkdir(parents=True, exist_ok=True)
    card = weights.read_card(options.file)
    if not card.trained_at:
        sys.exit(f"{options.file} takes input of the size of its training; write it with --image-size")
    assert card.arguments["num_classes"] == len(CLASSES)
    options.side = math.isqrt(AlexNetConfig(**{**card.arguments, "image_size": card.trained_at}).flat // 256)
    parts = [options.work / f"views-{number}.npz" for number in range(options.processes)]
    missing = [n for n, part in enumerate(parts) if not part.exists()]
    if missing:
        tasks = [(options, n, options.views // options.processes) for n in missing]
        with get_context("spawn").Pool(options.processes) as pool:
            list(pool.imap_unordered(make_views, tasks))
    train(options, parts)


if __name__ == "__main__":
    main()
