#!/usr/bin/env python3
"""The speed of a training step: simsearch beside the loop of a tutorial, in one run.

    scripts/bench/train.py SOURCE [--image-size 224] [--steps 20] [--rounds 3]

Both train AlexNet on the pictures of SOURCE (labelled, as for `simsearch train`), batch 128. The tutorial's loop is
torchvision's AlexNet, which has neither response normalisation nor groups, in float32 and eager mode, its pictures
decoded, cut and flipped by a DataLoader with one worker a core. simsearch's is the network of 2012 with the `fast`
preset: pictures decoded once beforehand, augmentation in batches, bfloat16 where it is fast, torch.compile. Rounds
alternate; printed are medians of images a second and their ratio, decoding aside named apart. On a GPU the share of
--peak (its dense bfloat16 peak in TFLOP/s) is printed as well: 6 operations a connection and image.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import sys
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision import transforms
from torchvision.models import alexnet

from simsearch.errors import TrainingInterruptedError
from simsearch.images.sources import labelled
from simsearch.models.networks import build
from simsearch.models.networks.alexnet import count
from simsearch.models.networks.configs import AlexNetConfig
from simsearch.training import data as training_data
from simsearch.training import run
from simsearch.training.augment import ColourStats
from simsearch.training.config import PRESETS
from simsearch.training.loop import train

BATCH = 128


class Files(torch.utils.data.Dataset):
    """The pictures one by one from a folder, as a tutorial reads them."""

    def __init__(self, files: list[Path], labels: list[int], side: int) -> None:
        self.files, self.labels = files, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(side),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.files[number]) as image:
            return self.transform(image.convert("RGB")), self.labels[number]


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def unpacked(pictures: list, folder: Path) -> list[Path]:
    """The pictures as files of their own, since several processes cannot read one open archive."""
    files = [folder / str(number) for number in range(len(pictures))]
    for picture, file in zip(pictures, files, strict=True):
        file.write_bytes(picture.source.read(picture.path))
    return files


def tutorial(files: list[Path], labels: list[int], side: int, steps: int, device: torch.device) -> float:
    """Images a second of the tutorial's loop, its first step left out."""
    network = alexnet(num_classes=max(labels) + 1).to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    loader = torch.utils.data.DataLoader(
        Files(files, labels, side),
        BATCH,
        shuffle=True,
        num_workers=os.cpu_count() or 1,
        drop_last=True,
        pin_memory=device.type == "cuda",
    )
    start = 0.0
    for step, (x, y) in enumerate(islice(loader, steps + 1)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x.to(device)), y.to(device)).backward()
        optimizer.step()
        if step == 0:
            wait(device)
            start = time.perf_counter()
    wait(device)
    return step * BATCH / (time.perf_counter() - start)


class Ours:
    """simsearch's loop; compiled once."""

    def __init__(self, data: training_data.TrainingSet, side: int, device: torch.device, folder: Path) -> None:
        self.data, self.device, self.folder = data, device, folder
        self.config = replace(PRESETS["alexnet"]["fast"], image_size=side, batch_size=BATCH, epochs=1000)
        self.colour = ColourStats.of(data.pixels)
        self.network = build.build_network("alexnet", AlexNetConfig(num_classes=len(data.classes), image_size=side))

    def __call__(self, steps: int) -> float:
        done = {"steps": 0, "start": 0.0}

        def stop() -> bool:  # asked after every step
            done["steps"] += 1
            if done["steps"] == 5:  # compiled and warm
                wait(self.device)
                done["start"] = time.perf_counter()
            if done["steps"] < steps + 5:
                return False
            wait(self.device)
            done["rate"] = steps * BATCH / (time.perf_counter() - done["start"])
            return True

        with contextlib.suppress(TrainingInterruptedError):
            train(self.data, self.network, self.config, self.folder / "c", self.colour, device=self.device, stop=stop)
        return done["rate"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--peak", type=float, default=989.0, help="TFLOP/s of the GPU; 989 is an H100's")
    options = parser.parse_args()
    device, side = torch.device(options.device), options.image_size
    pictures = labelled.list_labelled([options.source])
    classes = tuple(sorted({picture.label for picture in pictures}))
    start = time.perf_counter()
    data, _ = training_data.load(pictures, run.recipe_for("alexnet", side), classes)
    decoding = time.perf_counter() - start
    rates: dict[str, list[float]] = {"tutorial": [], "simsearch": []}
    with tempfile.TemporaryDirectory() as folder:
        labels = [classes.index(picture.label) for picture in pictures]
        files = unpacked(pictures, Path(folder))
        ours = Ours(data, side, device, Path(folder))
        for _ in range(options.rounds):
            rates["tutorial"].append(tutorial(files, labels, side, options.steps, device))
            rates["simsearch"].append(ours(options.steps))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(
        f"AlexNet at {side} pixels, {len(classes)} classes, batch {BATCH}, {len(data):,} pictures; {name},"
        f" torch {torch.__version__}, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"
    )
    for which, found in rates.items():
        print(
            f"{which:10} {np.median(found):8.1f} images/s ({min(found):.1f} to {max(found):.1f}, {len(found)} rounds)"
        )
    ratios = np.array(rates["simsearch"]) / np.array(rates["tutorial"])
    print(f"ratio {np.median(ratios):.2f}; decoding once beforehand took {decoding:.1f} s (0 where it was cached)")
    if device.type == "cuda":
        flops = 6 * count(ours.network.cpu()).connections * np.median(rates["simsearch"])
        print(f"{flops / 1e12:.1f} TFLOP/s, {flops / options.peak / 1e12:.1%} of the card's peak")


if __name__ == "__main__":
    main()
