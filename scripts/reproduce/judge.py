#!/usr/bin/env python3
"""How well weights find what is alike: P@1, P@6 and mAP, leaving one out, by Euclidean distance of the plain features.

    scripts/reproduce/judge.py SETS FILE.safetensors|WORK/NAME ... [--data DATA] [--teacher FILE.onnx]

Measured are the sets for choices: 600 pictures each of the repositories with the role `choice` in `pictures.tsv`, by
the folders that they lie in, and the pictures held out. With --data also what no choice may be made by: Corel,
the clothing set and the two validation sets, and for 1000 classes the guesses on Imagenette's. +- is a standard error.
With --curve, P@6 of several states of one training (copies of its folder) is drawn against its hours.
With --teacher, an ONNX file of `teacher.py`, also printed is how far the likenesses of 600 pictures of each set
for choices, and of the training pictures, are from the teacher's: if training pictures are nearly as far as others,
the network has yet to learn them, and more pictures alone will not help.
With --snapshots, as `pictures.py` takes them, weights files are measured on 800 pictures of each of the three
repositories, decoded and computed as a build does, instead: as they are, and scaled down to a shorter side of 128 and
64 pixels. It tells which input size to ship (`alexnet_file.py --image-size`).
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import numpy as np
import torch
from alexnet import CLASSES, COLOUR, Config, Pictures, Teacher, build
from alexnet_file import source
from pictures import git_folder, members, origins, read
from PIL import Image

from simsearch.errors import ImageError
from simsearch.evaluation.metrics import LabelledFeatures, retrieval
from simsearch.images.decode import decode_image
from simsearch.images.preprocessing import shorter_side
from simsearch.images.sources.labelled import list_labelled
from simsearch.models import weights
from simsearch.models.load import load_model
from simsearch.models.networks.build import build_network
from simsearch.models.networks.configs import AlexNetConfig
from simsearch.reports import charts
from simsearch.training import augment, batch_norm
from simsearch.training.augment import ColourStats
from simsearch.training.data import TrainingSet, load
from simsearch.training.publish import features_of
from simsearch.training.run import recipe_for
from simsearch.training.similarity_queue import SimilarityQueue

MOST, AS_THEY_ARE = 600, 800
COMPARED = 600
REPORTED = ("corel", "clothing", "imagenette160/val.zip", "tiny-imagenet/val.zip")


def choices(folder: Path) -> Iterator[tuple[str, TrainingSet]]:
    """The sets that choices are made by, a part of each repository drawn once and for all."""
    for name in (origin.name.replace("/", "+") for origin in origins() if origin.role == "choice"):
        pixels = np.load(folder / f"{name}.npy", mmap_mode="r")
        text = (folder / f"{name}.labels.txt").read_text().lower().replace("-", "").splitlines()
        rows = np.sort(np.random.default_rng(7).permutation(len(pixels))[:MOST])
        classes, labels = np.unique([text[row] for row in rows], return_inverse=True)
        yield name.partition("+")[2], TrainingSet(pixels[rows], labels, tuple(classes))
    yield "held-out", source(folder, "held-out")


def reported(data: Path, side: int) -> Iterator[tuple[str, TrainingSet]]:
    """The sets that figures are only reported on."""
    for name in REPORTED:
        found = list_labelled([data / name])
        classes = tuple(sorted({picture.label for picture in found}))
        yield name, load(found, recipe_for("alexnet", side), classes)[0]


def network_of(path: Path) -> tuple[torch.nn.Module, ColourStats]:
    """The network of a weights file or a training's folder."""
    if path.is_dir():
        content = torch.load(path / "checkpoint.pt", weights_only=True, mmap=True)
        network = build(Config(**content["config"]))
        if content["config"]["compress"]:
            batch_norm.fold(network)
        network.load_state_dict(content["network"])
        batch_norm.fold(network)
        return network.eval(), COLOUR
    card = weights.read_card(path)
    network = build_network("alexnet", AlexNetConfig(**card.arguments))
    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.read_tensors(path).items()})
    mean, std = torch.tensor(card.recipe.mean), torch.tensor(card.recipe.std)
    return network.eval(), replace(COLOUR, mean=mean, std=std)


@torch.no_grad()
def guesses(network: torch.nn.Module, data: TrainingSet, features: np.ndarray) -> str:
    """Top-1 and top-5 of 1000 classes, and top-1 among those of the set alone."""
    numbers = {label: number for number, (label, _) in enumerate(CLASSES)}
    own = torch.tensor([numbers[label] for label in data.classes])
    labels = torch.from_numpy(data.labels)
    logits = network.classifier(torch.from_numpy(features))
    right = logits.topk(5).indices == own[labels][:, None]
    among = logits[:, own].argmax(1) == labels
    one, five, few = (float(part.float().mean()) for part in (right[:, 0], right.any(1), among))
    return f"; of 1000 classes top-1 {one:.3f}, top-5 {five:.3f}; of its own {len(own)} top-1 {few:.3f}"


class Likenesses:
    """Compares a network's likenesses between pictures with a teacher's. sets: pictures (N, P, P, 3) uint8 by name."""

    def __init__(self, teacher: Teacher, sets: dict[str, np.ndarray]) -> None:
        self.temperature = Config().temperature
        self.pixels = {name: torch.from_numpy(np.ascontiguousarray(some[:COMPARED])) for name, some in sets.items()}
        taught = {name: teacher.of_centres(some)[0] for name, some in self.pixels.items()}
        mean = taught["training pictures"].mean(0)
        self.taught = {name: features - mean for name, features in taught.items()}

    @torch.no_grad()
    def __call__(self, network: torch.nn.Module, colour: ColourStats) -> dict[str, float]:
        """Returns the divergence between the two distributions over the other pictures of a set, the mean, by name."""
        found = {}
        for name, pixels in self.pixels.items():
            parts = pixels.split(256)
            features = torch.cat(
                [network.features(augment.centre(p, network.config.image_size, colour)) for p in parts]
            )
            within = SimilarityQueue(1, features.shape[1], self.taught[name].shape[1], self.temperature)
            found[name] = float(within(features, self.taught[name]))
        return found


def as_they_are(snapshots: Path) -> Iterator[tuple[str, list[Image.Image], np.ndarray]]:
    """Gives for each repository for choices its name, pictures as a build decodes them, and their labels."""
    for origin in origins():
        if origin.role != "choice":
            continue
        found, folder = members(origin, Path(), snapshots), str(git_folder(snapshots, origin.name))
        rows = np.sort(np.random.default_rng(7).permutation(len(found))[:AS_THEY_ARE])
        images, labels = [], []
        for address, path in (found[row] for row in rows):
            with contextlib.suppress(ImageError):
                images.append(decode_image(read(folder, address)).image)
                labels.append(Path(path).parent.name.lower().replace("-", ""))
        yield origin.name.partition("/")[2], images, np.unique(labels, return_inverse=True)[1]


def compare_sizes(snapshots: Path, files: list[Path]) -> None:
    """Prints P@6 of weights files on the pictures as they are and scaled down, and the means over the repositories."""
    models = {path: load_model(str(path.resolve())) for path in files}
    sums: dict[tuple[Path, str], list[float]] = {}
    for name, images, labels in as_they_are(snapshots):
        for scale in ("as they are", 128, 64):
            small = images if isinstance(scale, str) else [scaled(image, scale) for image in images]
            for path, model in models.items():
                features = np.concatenate(
                    [model.features(np.stack([model.recipe.pixels(x) for x in some])) for some in batched(small, 64)]
                )
                six = np.nanmean(retrieval(LabelledFeatures(features, labels))["P@6"])
                sums.setdefault((path, str(scale)), []).append(six)
                print(f"  {name}, {scale}: {path.name} P@6 {six:.3f} ({len(images)} pictures)", flush=True)
    for (path, scale), values in sums.items():
        print(f"{path.name}, {scale}: mean P@6 {np.mean(values):.3f}")


def scaled(image: Image.Image, side: int) -> Image.Image:
    """Scales an image down to a shorter side, if it is larger."""
    return shorter_side(image, side, Image.Resampling.BICUBIC) if min(image.size) > side else image


def batched(images: list[Image.Image], size: int) -> Iterator[list[Image.Image]]:
    for start in range(0, len(images), size):
        yield images[start : start + size]


def hours(path: Path) -> float:
    """Returns the hours of a training so far."""
    return float(torch.load(path / "checkpoint.pt", weights_only=True, mmap=True)["seconds"]) / 3600


def draw(curves: dict[str, list[tuple[float, float, float]]]) -> Image.Image:
    """Draws P@6 against hours, from (hours, P@6, standard error) by set."""
    lines = {name: [(x, y) for x, y, _ in sorted(points)] for name, points in curves.items()}
    bands = {name: [(x, y - error, y + error) for x, y, error in sorted(points)] for name, points in curves.items()}
    return charts.plot(lines, "P@6 of the sets for choices", "hours of training", "P@6", bands=bands, lowest=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", type=Path)
    parser.add_argument("weights", type=Path, nargs="+")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--curve", type=Path, metavar="FILE.png")
    parser.add_argument("--teacher", type=Path, metavar="FILE.onnx")
    parser.add_argument("--snapshots", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    if options.snapshots:
        if any(path.is_dir() for path in options.weights):
            parser.error("--snapshots takes weights files")
        compare_sizes(options.snapshots, options.weights)
        return
    if options.curve and not all(path.is_dir() for path in options.weights):
        parser.error("--curve takes the folders of a training, which know its hours")
    curves: dict[str, list[tuple[float, float, float]]] = {}
    compare = None
    if options.teacher:
        drawn, _ = Pictures(options.sets).draw(COMPARED, np.random.default_rng(5))
        some = {"training pictures": drawn, **{name: data.pixels for name, data in choices(options.sets)}}
        compare = Likenesses(Teacher(options.teacher), some)
    for path in options.weights:
        network, colour = network_of(path)
        print(path)
        sets = list(choices(options.sets))
        if options.data:
            sets += reported(options.data, network.config.image_size)
        for name, data in sets:
            features = features_of(network, data, colour)
            found = retrieval(LabelledFeatures(features, data.labels))
            six = found["P@6"][~np.isnan(found["P@6"])]
            error = six.std() / len(six) ** 0.5
            line = f"  {name}: {len(data):,} pictures, P@1 {np.nanmean(found['P@1']):.3f}, "
            line += f"P@6 {six.mean():.3f} +- {error:.3f}, mAP {np.nanmean(found['AP']):.3f}"
            if name.startswith("imagenette") and network.config.num_classes == len(CLASSES):
                line += guesses(network, data, features)
            print(line, flush=True)
            if options.curve:
                curves.setdefault(name, []).append((hours(path), six.mean(), error))
        if compare:
            far = ", ".join(f"{name} {value:.3f}" for name, value in compare(network, colour).items())
            print(f"  from the teacher's likenesses: {far}", flush=True)
    if options.curve:
        draw(curves).save(options.curve)


if __name__ == "__main__":
    main()
