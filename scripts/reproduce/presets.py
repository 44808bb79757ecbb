#!/usr/bin/env python3
"""AlexNet's two presets in one run: how soon do `paper` and `fast` reach the same validation accuracy?

    scripts/reproduce/presets.py SOURCE --val SOURCE [--image-size 224] [--target 0.5] [--most 60] [--seeds 1]

Both presets train the network of 2012 on the same decoded pictures, validated after every epoch; a run ends with the
epoch that reaches the target, or after --most. `paper` is section 5 of Krizhevsky et al. 2012: plain SGD in float32,
rate 0.01 divided by 10 when validation stalls, deviation 0.01. `fast` plans its whole schedule for --fast-epochs and
always runs it to the end, so that its figure is the one a user gets; besides it is shown when it passed the target.
Seconds are those of the training steps, compilation included, validation and decoding left out. Small pictures
(--image-size 64) make it a matter of minutes on a CPU. Prints the conditions, the epochs and the medians' ratio.
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
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import numpy as np
import torch

from simsearch.images.sources import labelled
from simsearch.models.networks import build
from simsearch.models.networks.configs import AlexNetConfig
from simsearch.training import data as training_data
from simsearch.training import run as training_run
from simsearch.training.augment import ColourStats
from simsearch.training.config import PRESETS, TrainConfig
from simsearch.training.loop import train


class Reached(Exception):  # noqa: N818
    """The target was reached."""


def run(
    data: training_data.TrainingSet,
    validation: training_data.TrainingSet,
    colour: ColourStats,
    config: TrainConfig,
    target: float,
    folder: Path,
    device: torch.device | None,
    to_end: bool,
) -> list[tuple[float, float]]:
    """Validation top-1 after each epoch, with the seconds of training until then: [(seconds, top-1)]."""
    torch.manual_seed(config.seed)
    network = build.build_network("alexnet", AlexNetConfig(num_classes=len(data.classes), image_size=config.image_size))
    network.initialise(config.gain or None)
    clock, found = {"since": time.perf_counter(), "seconds": 0.0}, []
    per_epoch = max(1, len(data) // config.batch_size)

    def log(row: dict) -> None:
        if row["event"] == "step" and row["step"] % per_epoch == 0:  # validation follows
            clock["seconds"] += time.perf_counter() - clock["since"]
        elif row["event"] == "epoch":
            found.append((clock["seconds"], row["top1"]))
            print(
                f"  seed {config.seed} epoch {row['epoch']}: top-1 {row['top1']:.1%}, {clock['seconds']:.0f} s",
                flush=True,
            )
            if row["top1"] >= target and not to_end:
                raise Reached
            clock["since"] = time.perf_counter()

    with contextlib.suppress(Reached):
        train(
            data,
            network,
            config,
            folder / "checkpoint",
            colour,
            validation=validation,
            device=device,
            log=log,
            checkpoint_seconds=1e9,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--val", required=True)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--target", type=float, default=0.5, help="validation top-1 to reach, a share")
    parser.add_argument("--most", type=int, default=60, help="epochs of `paper`")
    parser.add_argument("--fast-epochs", type=int, default=PRESETS["alexnet"]["fast"].epochs)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", choices=["paper", "fast"])
    parser.add_argument("--eager", action="store_true", help="without torch.compile, to try the whole path")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    side, device, target = options.image_size, torch.device(options.device), options.target
    recipe = training_run.recipe_for("alexnet", side)
    pictures = labelled.list_labelled([options.source])
    classes = tuple(sorted({picture.label for picture in pictures}))
    data, _ = training_data.load(pictures, recipe, classes)
    held = [picture for picture in labelled.list_labelled([options.val]) if picture.label in classes]
    validation, _ = training_data.load(held, recipe, classes)
    colour = ColourStats.of(data.pixels)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(
        f"AlexNet at {side} pixels, {len(data):,} pictures of {len(classes)} classes, {len(validation):,} to validate"
        f" on, batch 128; {where}, torch {torch.__version__}, Python {platform.python_version()},"
        f" load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    seconds: dict[str, list[float]] = {}
    lengths = {"fast": options.fast_epochs, "paper": options.most}
    for name in [options.only] if options.only else list(lengths):
        for seed in range(options.seeds):
            config = replace(PRESETS["alexnet"][name], image_size=side, epochs=lengths[name], seed=seed)
            config = replace(config, compile=config.compile and not options.eager)
            with tempfile.TemporaryDirectory() as folder:
                found = run(data, validation, colour, config, target, Path(folder), device, name == "fast")
            hits = [(number, time) for number, (time, top1) in enumerate(found, 1) if top1 >= target]
            when = f"{target:.0%} after {hits[0][0]} epochs, {hits[0][1]:.0f} s" if hits else f"never {target:.0%}"
            print(
                f"{name:5} seed {seed}: {when}; {found[-1][1]:.1%} after {len(found)} epochs, {found[-1][0]:.0f} s",
                flush=True,
            )
            seconds.setdefault(name, []).append(hits[0][1] if hits else float("inf"))
    if not options.only:
        paper, fast = (float(np.median(seconds[name])) for name in ("paper", "fast"))
        if np.isfinite(paper) and np.isfinite(fast):
            print(f"`fast` is {paper / fast:.1f} times sooner at {target:.0%}")
        else:
            print(f"no ratio: {'`paper`' if np.isfinite(fast) else '`fast`'} did not reach {target:.0%}")


if __name__ == "__main__":
    main()
