#!/usr/bin/env python3
"""Writes the weights file of a training by `alexnet.py`, and measures what is in it.

    scripts/reproduce/alexnet_file.py SETS WORK/NAME|FILE alexnet.safetensors --data DATA
        [--manifest FILE [--sources FILE]] [--image-size N] [--teacher NAME] [--note TEXT]

DATA holds tiny-imagenet/val.zip and imagenette160/val.zip. Normalisations are folded into the weights; what
`--compress` pruned and shared is stored as such, anything else as float16. FILE is the manifest.tsv of `pictures.py`:
with it, the weights record which pictures they were trained on, so that `eval model` can say so (three bytes a
picture). With --sources, only pictures of the sources in a `pictures.tsv` are recorded; it is for weights that were
trained when the list had fewer sources. NAME is the network that taught, TEXT what the training was begun from.

With --image-size, the network takes a larger input than in its training, at which it sees better (`judge.py` compares).
FILE, in place of a training's folder, is a weights file that was written so before.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import numpy as np
import torch
from alexnet import CLASSES, COLOUR, Config, Pictures, build

from simsearch.images.preprocessing import Preprocessing
from simsearch.images.sources.labelled import list_labelled
from simsearch.models import weights
from simsearch.models.networks.build import build_network
from simsearch.models.networks.configs import AlexNetConfig
from simsearch.models.training_record import TrainingRecord
from simsearch.training import batch_norm
from simsearch.training.data import TrainingSet, load
from simsearch.training.publish import publish
from simsearch.training.run import recipe_for

VALIDATION = {"Imagenette validation": "imagenette160/val.zip", "Tiny-ImageNet-200 validation": "tiny-imagenet/val.zip"}


def source(folder: Path, name: str) -> TrainingSet:
    """A source with its labels, as the 1000 classes' numbers."""
    pictures = np.load(folder / f"{name}.npy")
    known = {label: number for number, (label, _) in enumerate(CLASSES)}
    text = (folder / f"{name}.labels.txt").read_text().splitlines()
    return TrainingSet(pictures, np.array([known[label] for label in text]), tuple(label for label, _ in CLASSES))


def some_of(folder: Path, count: int) -> TrainingSet:
    """Pictures of all sources in their shares, without labels: for the ranges of the 8-bit engine."""
    pixels, _ = Pictures(folder).draw(count, np.random.default_rng(0))
    return TrainingSet(pixels, np.zeros(count, np.int64), tuple(label for label, _ in CLASSES))


def recorded(manifest: Path, sources: Path | None = None) -> TrainingRecord:
    """The pictures that were trained on and those held out, by the SHA-256 of the files that were laid out."""
    contents: dict[str, list[bytes]] = {"train": [], "held-out": []}
    known = {line.partition("\t")[0] for line in sources.read_text().splitlines()} if sources else None
    with manifest.open(newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            if row["role"] in contents and (known is None or row["source"] in known):
                contents[row["role"]].append(bytes.fromhex(row["content"]))
    return TrainingRecord.of(contents["train"], contents["held-out"], TrainingRecord())


def checks(options: argparse.Namespace, recipe: Preprocessing) -> Iterator[tuple[str, TrainingSet]]:
    """The pictures that the shipped file is measured on: those held out, and the validation sets."""
    yield "held-out training images", source(options.pictures, "held-out")
    classes = tuple(label for label, _ in CLASSES)
    for name, file in VALIDATION.items():
        found = list_labelled([options.data / file])
        if all(picture.label in classes for picture in found):
            yield name, load(found, recipe, classes)[0]


@dataclass
class Trained:
    """A network without normalisations, whether it is pruned and shared, and the story of its training for the card."""

    network: torch.nn.Module
    compressed: bool
    story: dict[str, Any]
    words: str

    @property
    def side(self) -> int:
        """The side in pixels of the input in training."""
        return self.network.config.image_size


def from_folder(options: argparse.Namespace) -> Trained:
    """The network of a training's folder."""
    content = torch.load(options.work / "checkpoint.pt", weights_only=True)
    config = Config(**content["config"])
    network = build(config)
    if config.compress:
        batch_norm.fold(network)
    network.load_state_dict(content["network"])
    batch_norm.fold(network)
    pictures, taught = Pictures(options.pictures, config.objective == "labels"), config.objective == "teacher"
    sources = f"{len(pictures):,} photographs of {len(pictures.names)} sources"
    queue = f"{options.teacher}'s likenesses over a queue (CompRess 2020) and its soft labels"
    story = {
        "data": f"{sources}, without labels" if taught else sources,
        "objective": queue if taught else "cross-entropy on labels",
        "images seen": content["numbers"][1],
        "minutes": round(content["seconds"] / 60),
        "normalisation": "batch normalisation in training, folded",
    }
    return Trained(network, config.compress, story, f"under {options.teacher}" if taught else "by labels alone")


def from_file(options: argparse.Namespace) -> Trained:
    """The network of a weights file that this script wrote before, with its story."""
    card = weights.read_card(options.work)
    if card.trained_at:
        sys.exit(f"{options.work} has been enlarged already")
    network = build_network("alexnet", AlexNetConfig(**card.arguments))
    network.load_state_dict(
        {name: torch.from_numpy(value) for name, value in weights.read_tensors(options.work).items()}
    )
    words = card.description.partition(", ")[2].removesuffix(".")
    story = {key: value for key, value in card.training.items() if key not in ("input", "weights kept")}
    return Trained(network, "weights kept" in card.training, story, words)


def ship(options: argparse.Namespace) -> None:
    """Writes what was compressed, or a dense file of what was not, with its card, and measures it."""
    trained = from_folder(options) if options.work.is_dir() else from_file(options)
    side = options.image_size or trained.side
    if side < trained.side:
        sys.exit(f"the network was trained at {trained.side} pixels; --image-size is for more")
    larger = side > trained.side
    story = dict(trained.story)
    story["input"] = f"{trained.side} px in training, for the sake of time" + (f"; now {side} px" if larger else "")
    if options.note:
        story["begun from"] = options.note
    recipe = replace(recipe_for("alexnet", side), mean=tuple(COLOUR.mean.tolist()), std=tuple(COLOUR.std.tolist()))
    card = weights.ModelCard(
        "alexnet",
        {"num_classes": len(CLASSES), "image_size": side},
        recipe,
        tuple(name for _, name in CLASSES),
        f"AlexNet 2012 at {side} px, {trained.words}.",
        story,
        labels=tuple(label for label, _ in CLASSES),
        trained_at=trained.side if larger else 0,
    )
    metrics = publish(
        trained.network,
        card,
        options.output,
        dict(checks(options, recipe)),
        COLOUR,
        compress=trained.compressed,
        trained_on=some_of(options.pictures, 2048),
        record=recorded(options.manifest, options.sources) if options.manifest else None,
    )
    print(f"{options.output}: {options.output.stat().st_size:,} bytes: {json.dumps(metrics, indent=1)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, metavar="SETS")
    parser.add_argument("work", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="the folder with the validation sets")
    parser.add_argument("--image-size", type=int, metavar="N", help="a larger input than in training, in pixels")
    parser.add_argument("--manifest", type=Path, metavar="FILE", help="manifest.tsv of the pictures that were laid out")
    parser.add_argument("--sources", type=Path, metavar="FILE", help="the pictures.tsv of that training")
    parser.add_argument("--teacher", default="EfficientNet-lite2", metavar="NAME", help="[default: %(default)s]")
    parser.add_argument("--note", help="what the training was begun from")
    ship(parser.parse_args())


if __name__ == "__main__":
    main()
