#!/usr/bin/env python3
"""Which vector from the network retrieves best for its size? Layers, pooling, views, normalisation, PCA with whitening.

    scripts/bench/descriptors.py DATA [--choices SETS] [--model NAME] [--only SET ...] [--limit N] [--all]

DATA is the folder with tiny-imagenet/, imagenette160/, cifar10/, corel/ and clothing/. Recipes are chosen on the first
three sets: `held-out`, 2,048 training images that scripts/reproduce/weights.py keeps from training; `other classes`,
the same, where components learned on half of the classes are tried on the other half, both ways; `CIFAR-10 train`,
2,000 images of another kind. With SETS, the folder that scripts/reproduce/arrays.py made, also on the sets by which
scripts/reproduce/judge.py chooses: 600 pictures each of scenes, groceries and waste. The rest is only reported.
Components are learned without labels, from the set that is searched (`own`, as `build --features` does) or from 4,096
training images (`train`). Layers are kept in indexes/descriptors/ (0.6 GB a set of weights), so a second run only
measures. --all adds the rows that were left behind early.

All but the first row have unit length, so their order is the cosine's. Query expansion and database-side augmentation
(Arandjelović & Zisserman, CVPR 2012) search one half of a set by the other, in rows with a reference of their own.
Printed: mean over queries with its 95 % interval, of P@6 also the difference from the reference, query by query.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import numpy as np
from PIL import Image

from simsearch.common import intervals
from simsearch.evaluation import metrics
from simsearch.images import decode
from simsearch.images.sources import labelled
from simsearch.indexing.learn_components import whitened
from simsearch.models import base, descriptors, load, registry
from simsearch.models.descriptors import Descriptor, LayerPart, describe, unit
from simsearch.search.feedback import expanded

TRAIN = [*(f"tiny-imagenet/train-{n}.zip" for n in range(4)), "imagenette160/train.zip"]
LEARN, HELD, CLASSES = "learn", "held-out", "other classes"
SETS = {
    "CIFAR-10 train": ("cifar10/train.zip", 2000),
    "Imagenette val": ("imagenette160/val.zip", 2000),
    "Tiny-ImageNet val": ("tiny-imagenet/val.zip", 3000),
    "corel": ("corel", 2500),
    "clothing": ("clothing", 300),
}
CHOICES = {
    "scenes": "Landscape-Image-Classification",
    "groceries": "GroceryStoreDataset",
    "waste": "Trash-Classification-",
}
VIEWS = {"centre": 1, "mirror": 1, "corners": 4, "large": 1}


@dataclass(frozen=True)
class Row:
    """recipe: None is the reference. views: beyond the centre, whose vectors are added up. source: where the components
    come from. around: "AQE" or "DBA" with its number of neighbours."""

    name: str
    recipe: Descriptor | None = None
    views: tuple[str, ...] = ("centre",)
    source: str = "own"
    around: tuple[str, int] = ("", 0)
    early: bool = False


def of(layer: str = "features", pooling: str = "", root: bool = False, **rest: Any) -> Descriptor:
    return Descriptor((LayerPart(layer, pooling, root),), **rest)


def joined(layer: str, pooling: str, weight: float, **rest: Any) -> Descriptor:
    return Descriptor((LayerPart(), LayerPart(layer, pooling, weight=weight)), **rest)


BOTH, FIVE = ("centre", "mirror"), ("centre", "corners")
BEST = descriptors.DESCRIPTORS["best"]
ROWS = (
    Row("fc7, plain (reference)"),
    Row("fc7", of()),
    Row("fc7, root", of(root=True)),
    Row("fc6", of("fc6")),
    Row("fc6, root", of("fc6", root=True), early=True),
    Row("conv5 max", of("conv5", "max")),
    Row("conv5 R-MAC", of("conv5", "rmac")),
    Row("conv5 R-MAC of 224 pixels", of("conv5", "rmac"), ("large",)),
    Row("conv5 R-MAC of 224 pixels, PCA 128, 0.5", of("conv5", "rmac", dimension=128, whitening=0.5), ("large",)),
    Row("conv5 R-MAC, PCA 128, 0.5", of("conv5", "rmac", dimension=128, whitening=0.5)),
    Row("fc7 + fc6", joined("fc6", "", 1.0), early=True),
    Row("fc7 + 0.5 R-MAC", joined("conv5", "rmac", 0.5), early=True),
    Row("fc7 + 0.5 R-MAC, PCA 256, 0.25", joined("conv5", "rmac", 0.5, dimension=256, whitening=0.25)),
    *(
        Row(
            f"fc7 + {weight:g} R-MAC + mirror, PCA {d}, 0.25",
            joined("conv5", "rmac", weight, dimension=d, whitening=0.25),
            BOTH,
        )
        for weight, d in ((0.5, 256), (1.0, 256), (1.0, 128), (1.0, 512))
    ),
    Row("fc7 + mirror", of(), BOTH),
    Row("fc7 + 4 corners", of(), FIVE),
    Row("fc7 + mirror + 4 corners", of(), ("centre", "mirror", "corners"), early=True),
    *(
        Row(f"fc7, PCA {d}, {w:g}", of(dimension=d, whitening=w))
        for d, w in (
            (64, 0.25),
            (128, 0.25),
            (256, 0.0),
            (256, 0.25),
            (256, 0.5),
            (256, 1.0),
            (512, 0.25),
            (1024, 0.25),
        )
    ),
    Row("fc7, root, PCA 256, 0.25", of(root=True, dimension=256, whitening=0.25), early=True),
    Row("fc6, PCA 256, 0.25", of("fc6", dimension=256, whitening=0.25), early=True),
    Row("fc7, PCA 256, 0.25, from training images", of(dimension=256, whitening=0.25), source="train"),
    Row("fc7 + mirror, PCA 256, 0.25 (best)", BEST, BOTH),
    Row("fc7 + mirror + 4 corners, PCA 256, 0.25", of(dimension=256, whitening=0.25), ("centre", "mirror", "corners")),
    *(
        Row(f"{kind}, {words}", recipe, around=(what, n))
        for kind, recipe in (("plain", None), ("fc7-256", descriptors.DESCRIPTORS["fc7-256"]))
        for words, what, n in (
            ("half by half", "", -1),
            ("query expansion 5", "AQE", 5),
            ("query expansion 10", "AQE", 10),
            ("database augmented 5", "DBA", 5),
        )
    ),
)


def pictures(data: Path, name: str) -> list[labelled.LabelledImage]:
    if name in (LEARN, HELD):
        found = labelled.list_labelled([data / file for file in TRAIN])
        order = np.random.default_rng(2012).permutation(len(found))
        return [found[row] for row in np.sort(order[:2048] if name == HELD else order[2048:6144])]
    place, count = SETS[name]
    found = labelled.list_labelled([data / place])
    order = np.random.default_rng(2012).permutation(len(found))[:count]
    return [found[row] for row in np.sort(order)]


class Choice:
    """A set that weights are chosen by, from the arrays of scripts/reproduce/arrays.py: pixels (N, P, P, 3) uint8."""

    def __init__(self, folder: Path, name: str) -> None:
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "reproduce"))
        import judge

        self.data = next(data for known, data in judge.choices(folder) if known == CHOICES[name])

    def __len__(self) -> int:
        return len(self.data.pixels)

    def open(self, row: int) -> Image.Image:
        return Image.fromarray(self.data.pixels[row])

    def label(self, row: int) -> str:
        return self.data.classes[self.data.labels[row]]


class Files:
    """A set of picture files, or the training images of some kind."""

    def __init__(self, data: Path, name: str, resize: int) -> None:
        self.found, self.resize = pictures(data, name), resize

    def __len__(self) -> int:
        return len(self.found)

    def open(self, row: int) -> Image.Image:
        picture = self.found[row]
        return decode.decode_image(picture.source.read(picture.path), self.resize).image

    def label(self, row: int) -> str:
        return self.found[row].label


def larger(model: base.Model) -> Callable[[np.ndarray], np.ndarray]:
    """The convolutions alone, which take pictures of any size, in torch."""
    import torch

    from simsearch.models import weights
    from simsearch.models.networks import build
    from simsearch.models.torch.runtime import TorchRunner

    file = registry.find_weights(model.name)
    network = build.build_network(file.card.architecture, file.config).eval()
    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.read_tensors(file.path).items()})
    runner = TorchRunner(model.recipe, "cpu")
    shape: list[int] = []

    def convolutions(x: torch.Tensor) -> torch.Tensor:
        y = network.conv[:-1](x)
        shape[:] = y.shape[1:]
        return y

    return lambda pixels: runner.run(convolutions, pixels).reshape(len(pixels), *shape)


class Layers:
    """A model's layers for a view of pictures, kept on disk."""

    def __init__(self, data: Path, choices: Path | None, model: base.Model, limit: int | None) -> None:
        self.data, self.choices, self.model, self.limit = data, choices, model, limit
        part = model.weights_sha256[:16] + (f"-{limit}" if limit else "")
        self.folder = Path("indexes/descriptors") / part
        side = model.recipe
        self.recipes = {
            "centre": side,
            "mirror": side,
            "corners": replace(side, crop=side.resize),
            "large": replace(side, resize=round(side.resize * 224 / side.crop), crop=224),
        }
        self.larger: Any = None

    def compute(self, view: str, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """pixels (B, S, S, 3) uint8, cut by this view's recipe."""
        if view == "large":
            self.larger = self.larger or larger(self.model)
            conv5 = self.larger(pixels)
            return {"max": conv5.max((2, 3)), "rmac": descriptors.r_mac(conv5)}
        if view == "corners":
            side = self.model.recipe.crop
            places = [(y, x) for y in (0, pixels.shape[1] - side) for x in (0, pixels.shape[1] - side)]
            return {
                f"corner{n}": self.model.features(np.ascontiguousarray(pixels[:, y : y + side, x : x + side]))
                for n, (y, x) in enumerate(places)
            }
        seen = pixels if view == "centre" else np.ascontiguousarray(pixels[:, :, ::-1])
        features, fc6, conv5 = self.model.outputs(("features", "fc6", "conv5"), seen)  # type: ignore[attr-defined]
        return {"features": features, "fc6": fc6, "max": conv5.max((2, 3)), "rmac": descriptors.r_mac(conv5)}

    def fill(self, name: str, view: str) -> Path:
        """The folder with a set's layers; computed where they are not there yet."""
        place = self.folder / name.replace(" ", "-")
        if (place / f"{view}.done").exists():
            return place
        place.mkdir(parents=True, exist_ok=True)
        recipe = self.recipes[view]
        found: Choice | Files
        if name in CHOICES:
            assert self.choices is not None
            found = Choice(self.choices, name)
        else:
            found = Files(self.data, name, recipe.resize)
        rows = range(min(len(found), self.limit or len(found)))
        parts: dict[str, list[np.ndarray]] = {}
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(rows), 64):
                some = rows[start : start + 64]
                batch = np.stack(list(pool.map(lambda row: recipe.pixels(found.open(row)), some)))
                for layer, block in self.compute(view, batch).items():
                    parts.setdefault(layer, []).append(block.astype(np.float16))
        for layer, blocks in parts.items():
            np.save(place / f"{view}-{layer}.npy", np.concatenate(blocks))
        np.save(place / "labels.npy", np.array([found.label(row) for row in rows]))
        (place / f"{view}.done").touch()
        return place

    def labels(self, name: str) -> np.ndarray:
        return np.load(self.fill(name, "centre") / "labels.npy")

    def milliseconds(self) -> dict[str, float]:
        """An image's time in the network, by view."""
        took = {}
        for view, recipe in self.recipes.items():
            batch = np.random.default_rng(0).integers(0, 256, (64, recipe.crop, recipe.crop, 3), dtype=np.uint8)
            self.compute(view, batch)
            began = time.perf_counter()
            self.compute(view, batch)
            took[view] = 1000 * (time.perf_counter() - began) / 64
        return took

    def vectors(self, name: str, row: Row) -> np.ndarray:
        """(N, D) float32, before any components."""
        total: Any = 0
        for view in row.views:
            place = self.fill(name, view)
            names = [f"corner{n}" for n in range(4)] if view == "corners" else [""]
            for corner in names:
                seen = {}
                for part in row.recipe.parts if row.recipe else (LayerPart(),):
                    file = corner or (part.pooling if part.layer == "conv5" else part.layer)
                    seen[part.layer] = np.load(place / f"{view}-{file}.npy").astype(np.float32)
                if row.recipe is None:
                    return seen["features"]
                # Pooled when it was computed.
                plain = replace(row.recipe, parts=tuple(replace(part, pooling="") for part in row.recipe.parts))
                total = total + describe(plain, seen)
        return unit(total)


def searched(x: np.ndarray, labels: np.ndarray, around: tuple[str, int]) -> metrics.Values:
    """The measures of leave-one-out search, or with `around` of one half of the rows searched by the other, and for
    each query the dimension."""
    width = {"dimension": np.full(len(x), x.shape[1])}
    labels = np.unique(labels, return_inverse=True)[1]
    what, count = around
    if not count:
        return metrics.retrieval(metrics.LabelledFeatures(x.astype(np.float16), labels)) | width
    order = np.random.default_rng(0).permutation(len(x))
    asked, base = order[::2], order[1::2]
    q, b = x[asked], x[base]

    def near(rows: np.ndarray, itself: bool = False) -> np.ndarray:
        squared = (b**2).sum(1) - 2 * rows @ b.T
        if itself:
            np.fill_diagonal(squared, np.inf)
        return np.argsort(squared, 1)[:, :count]

    if what == "AQE":
        q = np.stack([expanded(row, b[places]) for row, places in zip(q, near(q), strict=True)])
    elif what == "DBA":
        b = np.stack([expanded(row, b[places]) for row, places in zip(b, near(b, itself=True), strict=True)])
    found = metrics.retrieval(metrics.LabelledFeatures(b, labels[base]), metrics.LabelledFeatures(q, labels[asked]))
    return found | {"dimension": width["dimension"][asked]}


def measured(layers: Layers, name: str, row: Row) -> metrics.Values:
    """One row on one set."""

    def projected(x: np.ndarray, sample: np.ndarray) -> np.ndarray:
        assert row.recipe is not None
        found = whitened(sample.astype(np.float16), min(row.recipe.dimension, len(sample) // 2), row.recipe.whitening)
        return unit(found(x.astype(np.float16)))

    learns = row.recipe is not None and row.recipe.dimension
    if name != CLASSES:
        x = layers.vectors(name, row)
        if learns:
            x = projected(x, x if row.source == "own" else layers.vectors(LEARN, row))
        return searched(x, layers.labels(name), row.around)
    x, labels, known = layers.vectors(HELD, row), layers.labels(HELD), layers.labels(LEARN)
    classes = np.random.default_rng(5).permutation(np.unique(known))
    found = []
    for half in (classes[::2], classes[1::2]):
        there = ~np.isin(labels, half)
        y = projected(x[there], layers.vectors(LEARN, row)[np.isin(known, half)]) if learns else x[there]
        found.append(searched(y, labels[there], row.around))
    return {measure: np.concatenate([values[measure] for values in found]) for measure in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default=registry.DEFAULT)
    parser.add_argument("--choices", type=Path, metavar="SETS", help="folder of scripts/reproduce/arrays.py")
    parser.add_argument(
        "--only", action="append", choices=[HELD, CLASSES, *CHOICES, *SETS], help="only this set; repeatable"
    )
    parser.add_argument("--row", action="append", default=[], metavar="WORDS", help="only rows with these words")
    parser.add_argument("--limit", type=int, help="approximate number of images of each set, to try the whole path")
    parser.add_argument("--all", action="store_true", help="also rows that did worse from the start")
    options = parser.parse_args()
    if not options.choices and set(options.only or ()) & set(CHOICES):
        parser.error("scenes, groceries and waste need --choices")
    layers = Layers(options.data, options.choices, load.load_model(options.model, "cpu"), options.limit)
    took = layers.milliseconds()
    rows = [
        row
        for row in ROWS
        if (options.all or not row.early)
        and (not options.row or row == ROWS[0] or any(words in row.name for words in options.row))
    ]
    print(
        f"{layers.model.name}, {layers.model.weights_sha256[:16]}; bytes an item as float16; ms an image in the network"
    )
    for name in options.only or [HELD, CLASSES, *(CHOICES if options.choices else ()), *SETS]:
        reference: dict[bool, np.ndarray] = {}
        for row in rows:
            values = measured(layers, name, row)
            first = reference.setdefault(bool(row.around[1]), values["P@6"])
            scores = intervals.with_intervals({**values, "difference": values["P@6"] - first})
            shown = (
                f"{k.replace('AP', 'mAP')} {scores[k].value:.3f} ({scores[k].low:.3f} to {scores[k].high:.3f})"
                for k in ("P@1", "P@6", "AP")
            )
            d, size = scores["difference"], 2 * int(values["dimension"][0])
            print(
                f"{name:18} {row.name:42} {size:5} {sum(took[view] for view in row.views):5.1f}  {'  '.join(shown)}"
                f"  P@6 {d.value:+.3f} ({d.low:+.3f} to {d.high:+.3f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
