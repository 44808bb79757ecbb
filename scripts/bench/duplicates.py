#!/usr/bin/env python3
"""How well a distance tells copies of a picture from other pictures: precision and recall by threshold.

    scripts/bench/duplicates.py -i INDEX [--count 200] [--seed 0]

COUNT random items of an index are changed in graded ways: saved as JPEG, scaled, cropped, brightened, recoloured,
turned, mirrored. Each copy then queries the whole index, exactly. Within a threshold, its original is a hit and any
other item a mistake, unless that item lies within the smallest threshold of the original: such pairs are copies that
the index held before, and are counted apart. Recall is the share of copies whose original is within the threshold;
precision the share of hits among all items within it. Thresholds are shares of the median distance of random pairs,
and the one that `simsearch duplicates` chooses by default, from 32 other pictures and four kinds of copies.

Choose an index of training images: what a model was tested on must not set its thresholds.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import numpy as np
from PIL import Image, ImageEnhance

import simsearch
from simsearch.engine import Engine
from simsearch.images import perturb
from simsearch.images.sources import resolve
from simsearch.search import similarity
from simsearch.search.copy_threshold import FAITHFUL, copy_threshold

SHARES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5)
NEAREST = 8


def colder(image: Image.Image) -> Image.Image:
    return ImageEnhance.Color(image).enhance(0.7)


def cropped(image: Image.Image) -> Image.Image:
    x, y = round(image.width * 0.05), round(image.height * 0.05)
    return image.crop((x, y, image.width - x, image.height - y))


def halved(image: Image.Image) -> Image.Image:
    return image.resize((max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.LANCZOS)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    **perturb.COPIES,
    "scaled to 50 %": halved,
    "cropped by 10 %": cropped,
    "colour 70 %": colder,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--index", required=True)
    parser.add_argument("--count", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with Engine(options.index, device="cpu") as engine:
        limit = copy_threshold(engine.opened_index, engine.model)
        median = similarity.median(engine.meta.distances)
        with engine.reading() as reader:
            ids, _ = reader.ids_and_rows()
        chosen = (
            np.random.default_rng(options.seed + 1).choice(ids, min(options.count, len(ids)), replace=False).tolist()
        )
        originals = {number: resolve.open_picture(engine.read(number), None).image for number in chosen}
        print(
            f"simsearch {simsearch.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores;"
            f" {options.index}: {len(ids):,} items, model {engine.meta.model}, median random pair {median:.3g};"
            f" {len(originals)} pictures, seed {options.seed}"
        )
        before = engine.search_by_vectors(
            np.stack([engine.stored_features(number) for number in originals]), NEAREST + 1, exact=True
        )
        twins = {
            number: {match.id for match in matches if match.distance <= SHARES[0] * median}
            for number, matches in zip(originals, before, strict=True)
        }
        print(f"{sum(len(found - {number}) for number, found in twins.items())} other items are copies already\n")
        own: dict[str, np.ndarray] = {}
        others: dict[str, list[float]] = {}
        for name, change in CHANGES.items():
            copies = engine.features([change(image) for image in originals.values()])
            base = np.stack([engine.stored_features(number) for number in originals])
            own[name] = np.linalg.norm(copies.astype(np.float64) - base, axis=1)
            found = engine.search_by_vectors(copies, NEAREST + 1, exact=True)
            others[name] = [
                match.distance
                for number, matches in zip(originals, found, strict=True)
                for match in matches
                if match.id != number and match.id not in twins[number]
            ]
    limits = [(f"{share:g}", share * median) for share in SHARES] + [("default", limit.distance)]
    print(f"recall by threshold (default: {limit.distance:.4g}, {limit.distance / median:.2f} of the median)")
    print(f"{'':22}" + "".join(f"{name:>9}" for name, _ in limits))
    for name, distances in own.items():
        print(f"{name:22}" + "".join(f"{(distances <= at).mean():9.3f}" for _, at in limits))
    faithful = np.concatenate([own[name] for name in FAITHFUL])
    strangers = np.array([distance for name in FAITHFUL for distance in others[name]])
    print(f"{'the first four: recall':22}" + "".join(f"{(faithful <= at).mean():9.3f}" for _, at in limits))
    hits = [((faithful <= at).sum(), (strangers <= at).sum()) for _, at in limits]
    print(f"{'precision':22}" + "".join(f"{hit / max(1, hit + miss):9.3f}" for hit, miss in hits))
    print(f"{'other items within it':22}" + "".join(f"{miss:9d}" for _, miss in hits))


if __name__ == "__main__":
    main()
