#!/usr/bin/env python3
"""LeNet-5 on MNIST: test error without and with distortions, over several seeds, beside the figures of 1998.

    scripts/reproduce/lenet5.py DATA [--seeds 3] [--work DIR]

DATA holds MNIST's four files as published (train-images-idx3-ubyte.gz, ...). The network is that of 1998
(simsearch/models/lenet.py: trainable sub-sampling, table of connections, scaled tanh, radial basis functions, 60,000
parameters); the training is not: SGD with momentum and a cosine schedule instead of the stochastic diagonal
Levenberg-Marquardt method. With distortions, each pass sees other shifts, turns, shears and changes of scale of the
60,000 digits (LeCun et al. 1998, section III.A, who added 540,000 distorted digits). Nothing is chosen by the test set;
the settings were chosen on 10,000 training images held out (--tune).

Prints each seed's error, mean and deviation; writes the robustness figure and table (shift, rotation, scale, noise; of
the first seed with distortions) and its weights into the work folder, indexes the test images with them, and queries
the index. Finished seeds are kept in the work folder, so an interrupted run continues.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import numpy as np
import torch
from PIL import Image

import simsearch
from simsearch.evaluation.metrics import LabelledFeatures, retrieval
from simsearch.images.preprocessing import Preprocessing
from simsearch.models import weights
from simsearch.models.networks import build
from simsearch.models.networks.base import Network
from simsearch.models.networks.configs import LeNet5Config
from simsearch.models.networks.lenet5_tables import LENET5_INPUT
from simsearch.reports import charts
from simsearch.training import augment, publish
from simsearch.training.config import PRESETS, TrainConfig, change
from simsearch.training.data import TrainingSet
from simsearch.training.loop import accuracy, train

LECTURE = {"paper": 0.95, "distorted": 0.80}  # percent of the test images
COLOUR = augment.ColourStats.fixed(*LENET5_INPUT)


def read(folder: Path, name: str) -> np.ndarray:
    """An array in the idx format: two zero bytes, type, dimensions, their sizes, values."""
    data = gzip.decompress((folder / f"{name}-ubyte.gz").read_bytes())
    shape = np.frombuffer(data, ">i4", data[3], 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def digits(folder: Path, part: str) -> TrainingSet:
    """28 x 28 digits in the middle of 32 x 32 squares, as three equal channels."""
    pixels = np.pad(read(folder, f"{part}-images-idx3"), ((0, 0), (2, 2), (2, 2)))
    labels = read(folder, f"{part}-labels-idx1").astype(np.int64)
    return TrainingSet(np.repeat(pixels[..., None], 3, 3), labels, tuple("0123456789"))


def run(
    data: TrainingSet, test: TrainingSet, config: TrainConfig, seed: int, work: Path, name: str
) -> tuple[Network, float]:
    """A trained network and its test error in percent."""
    torch.manual_seed(seed)
    network = build.build_network("lenet5", LeNet5Config())
    if config.gain:
        network.initialise(config.gain)
    file = work / f"{name}-{seed}.checkpoint"
    start = time.monotonic()
    told = [start]

    def log(row: dict) -> None:
        if row["event"] == "step" and time.monotonic() - told[0] > 20:
            told[0] = time.monotonic()
            print(
                f"  {name} seed {seed}: epoch {row['epoch']:.1f}, loss {row['loss']:.4f}, {row['rate']:,.0f} images/s",
                flush=True,
            )

    train(data, network, replace(config, seed=seed), file, COLOUR, resume=True, log=log)
    error = 100 * (1 - accuracy(network, test, COLOUR)["top1"])
    print(
        f"{name:10} seed {seed}: {error:.2f} % of {len(test):,} wrong"
        f" (training {100 * (1 - accuracy(network, data, COLOUR)['top1']):.2f} %), {time.monotonic() - start:.0f} s",
        flush=True,
    )
    return network, error


def robustness(network: Network, test: TrainingSet, work: Path, count: int = 2000) -> None:
    """Error under growing shift, rotation, scale and noise: table, curves, and what the network saw."""
    count = min(count, len(test))
    sample = test.select(np.arange(count))
    pixels = torch.from_numpy(np.ascontiguousarray(sample.pixels[:])).permute(0, 3, 1, 2).float()
    labels = torch.from_numpy(sample.labels)
    levels = {
        "shift in pixels": (0, 1, 2, 3, 4, 5, 6),
        "rotation in degrees": (0, 10, 20, 30, 40, 50, 60),
        "scale in %": (100, 90, 80, 70, 60, 50, 40),
        "noise, deviation in %": (0, 10, 20, 30, 40, 50, 60),
    }
    strips, series = [], {}
    random = torch.Generator().manual_seed(0)
    for kind, values in levels.items():
        errors = []
        for value in values:
            theta = torch.eye(2, 3).repeat(count, 1, 1)
            sign = torch.randint(0, 2, (count,), generator=random) * 2.0 - 1
            if kind.startswith("shift"):
                angle = torch.rand(count, generator=random) * 2 * np.pi
                theta[:, :, 2] = torch.stack([angle.cos(), angle.sin()], 1) * value / 16
            elif kind.startswith("rotation"):
                turn = sign * np.radians(value)
                theta[:, :, :2] = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], 1).view(-1, 2, 2)
            elif kind.startswith("scale"):
                theta[:, :, :2] /= value / 100
            grid = torch.nn.functional.affine_grid(theta, [count, 3, 32, 32], align_corners=False)
            x = torch.nn.functional.grid_sample(pixels, grid, align_corners=False)
            if kind.startswith("noise"):
                x = (x + torch.randn(count, 1, 32, 32, generator=random) * 2.55 * value).clamp(0, 255)
            with torch.no_grad():
                wrong = network(augment.normalise(x, COLOUR)).argmax(1) != labels
            errors.append(100 * wrong.float().mean().item())
            strips.append(x[:6, 0].numpy().astype(np.uint8))
        print(f"{kind:22}" + "".join(f"{value:>7}" for value in values))
        print(f"{'error in %':22}" + "".join(f"{error:7.2f}" for error in errors))
        series[kind.split(",")[0].split(" in")[0]] = list(enumerate(errors))
    chart = charts.plot(series, "LeNet-5 under distortions", "step of the table", "error in %", lowest=0.0)
    rows = [
        np.concatenate([np.concatenate(list(strips[7 * kind + level]), 1) for level in (1, 3, 5)], 1)
        for kind in range(4)
    ]
    shown = Image.fromarray(np.concatenate(rows)).convert("RGB")
    shown = shown.resize((chart.width, shown.height * chart.width // shown.width))
    figure = Image.new("RGB", (chart.width, chart.height + shown.height), "white")
    figure.paste(chart, (0, 0))
    figure.paste(shown, (0, chart.height))
    figure.save(work / "robustness.png")
    print(f"wrote {work / 'robustness.png'}: below the curves, a row a distortion at steps 1, 3 and 5")


def index(test: TrainingSet, weights_file: Path, work: Path) -> None:
    """Indexes the test images with the 84 features of layer F6, like any other pictures."""
    folder = work / "digits"
    for number, (image, label) in enumerate(zip(test.pixels, test.labels, strict=True)):
        path = folder / str(label) / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            Image.fromarray(image[2:-2, 2:-2, 0]).save(path)
    with simsearch.build(folder, work / "index", str(weights_file)) as engine:
        first = str(test.labels[0])
        found = engine.search(folder / first / "00000.png", k=6)
        print(
            f"index of {len(engine):,} digits, {engine.meta.dimension} features each; nearest to the first, a {first}:",
            ", ".join(f"{match.label} at {match.distance:.2f}" for match in found),
        )
        with engine.reading() as reader:
            items = list(reader.items())
        features = engine.shards.read(np.array([item.row for item in items])).astype(np.float32)
        scores = retrieval(LabelledFeatures(features, np.array([int(item.label) for item in items])))
        print("leave-one-out over all:", ", ".join(f"{name} {np.nanmean(value):.4f}" for name, value in scores.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("indexes/lenet5"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of both presets"
    )
    parser.add_argument("--only", choices=["paper", "distorted"])
    parser.add_argument("--tune", action="store_true", help="judge by 10,000 training images instead of the test set")
    parser.add_argument("--limit", type=int, help="number of images to train on, to try the whole path")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    data, test = digits(options.data, "train"), digits(options.data, "t10k")
    if options.tune:
        test, data = data.select(np.arange(50_000, 60_000)), data.select(np.arange(50_000))
    if options.limit:
        data = data.select(np.arange(options.limit))
    print(f"{len(data):,} images, torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}")
    summary = {}
    for name in [options.only] if options.only else ["paper", "distorted"]:
        config = change(PRESETS["lenet5"][name], options.set)
        found = [run(data, test, config, seed, options.work, name) for seed in range(options.seeds)]
        errors = np.array([error for _, error in found])
        summary[name] = (
            f"{errors.mean():.3f} % (deviation {errors.std(ddof=1) if len(errors) > 1 else 0:.3f}, {len(errors)} seeds)"
        )
        print(f"{name}: mean {summary[name]}; the lecture says {LECTURE[name]:.2f} %", flush=True)
        network = found[0][0]
    if options.tune:
        return
    file = options.work / "lenet5.safetensors"
    card = weights.ModelCard(
        "lenet5",
        {},
        Preprocessing(28, 32, (LENET5_INPUT[0],) * 3, (LENET5_INPUT[1],) * 3),
        test.classes,
        "LeNet-5 of 1998, trained on MNIST with distortions.",
        metrics=summary,
    )
    publish.publish(network, card, file, {"test images": test}, COLOUR, compress=False)
    print(json.dumps(weights.read_card(file).metrics))
    robustness(network, test, options.work)
    index(test, file, options.work)


if __name__ == "__main__":
    main()
