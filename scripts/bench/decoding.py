#!/usr/bin/env python3
"""Does decoding at a smaller scale change what is found? Features by simsearch's path beside those by plain Pillow.

    scripts/bench/decoding.py SOURCE [--limit 600] [--megapixels 3 ...] [--model NAME|FILE]

SOURCE is labelled by its folders or columns; choose training images. `--limit` of its images, evenly spread, are
enlarged to each size and saved as JPEG of quality 90 (0: each file as it is). Plain Pillow decodes the whole picture,
scales it whole and cuts the centre out. simsearch decodes a JPEG at a half, a quarter or an eighth where that leaves
1.5 times the pixels needed, and scales only what it keeps. Prints the cosine of both features (least, first percentile,
median), how many of the six nearest are the same, P@6 by label of both, and each path's CPU milliseconds an image.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import sys
import time
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import numpy as np
from PIL import Image, ImageOps

import simsearch
from simsearch.common import float16
from simsearch.evaluation.metrics import LabelledFeatures, retrieval
from simsearch.images.preprocessing import FILTERS, Preprocessing, centre_crop, shorter_side
from simsearch.images.sources.base import folder_labels
from simsearch.images.sources.resolve import resolve
from simsearch.indexing import load
from simsearch.models import load as models_load
from simsearch.models import registry


def enlarged(data: bytes, megapixels: float) -> bytes:
    if not megapixels:
        return data
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    scale = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
    size = (round(image.width * scale), round(image.height * scale))
    out = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def plain(data: bytes, recipe: Preprocessing) -> np.ndarray:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    return centre_crop(shorter_side(image, recipe.resize, FILTERS[recipe.interpolation]), recipe.crop)


def fast(data: bytes, recipe: Preprocessing) -> np.ndarray:
    pixels = load.load_image(lambda: data, recipe).pixels
    if pixels is None:
        raise SystemExit("an image cannot be decoded")
    return pixels


def nearest(features: np.ndarray) -> np.ndarray:
    """The six nearest others of each row, (N, 6)."""
    lengths = (features**2).sum(1)
    distances = lengths[:, None] + lengths[None, :] - 2 * features @ features.T
    np.fill_diagonal(distances, np.inf)
    return np.argsort(distances, axis=1, kind="stable")[:, :6]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--limit", type=int, default=600)
    parser.add_argument("--megapixels", type=float, nargs="+", default=[3.0])
    parser.add_argument("--model", default=registry.DEFAULT)
    options = parser.parse_args()
    source = resolve(options.source)
    entries = source.listing().entries
    labels = [entry.label for entry in entries] if source.labelled else folder_labels(entries)
    chosen = np.linspace(0, len(entries) - 1, min(options.limit, len(entries))).round().astype(int)
    numbers = np.unique([str(labels[number]) for number in chosen], return_inverse=True)[1]
    model = models_load.load_model(options.model, "cpu")
    print(
        f"{options.source}: {len(chosen):,} of {len(entries):,} images, {numbers.max() + 1} labels;"
        f" model {model.name}, {model.recipe.crop} pixels"
    )
    print(
        f"simsearch {simsearch.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores,"
        f" load {os.getloadavg()[0]:.1f}\n"
    )
    print(
        f"{'size':>10} {'cosine: least':>14} {'1 %':>8} {'median':>8} {'top-6 same':>11} {'P@6 plain':>10}"
        f" {'simsearch':>10} {'ms plain':>9} {'simsearch':>10}"
    )
    for megapixels in options.megapixels:
        features, used = [], np.zeros(2)
        for number in chosen:
            data = enlarged(source.read(entries[number].path), megapixels)
            pair = []
            for way, path in enumerate((plain, fast)):
                start = time.thread_time()
                pair.append(path(data, model.recipe))
                used[way] += time.thread_time() - start
            features.append(model.features(np.stack(pair)))
        both = float16.to_float16(np.stack(features)).astype(np.float32)  # (N, 2, D)
        a, b = both[:, 0], both[:, 1]
        cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
        same = [len(set(x) & set(y)) / 6 for x, y in zip(nearest(a), nearest(b), strict=True)]
        scores = [retrieval(LabelledFeatures(rows, numbers))["P@6"].mean() for rows in (a, b)]
        ms = 1000 * used / len(chosen)
        name = f"{megapixels:g} MP" if megapixels else "as it is"
        quantiles = f"{cosines.min():14.5f} {np.percentile(cosines, 1):8.5f} {np.median(cosines):8.5f}"
        quality = f"{np.mean(same):11.4f} {scores[0]:10.4f} {scores[1]:10.4f}"
        print(f"{name:>10} {quantiles} {quality} {ms[0]:9.2f} {ms[1]:10.2f}", flush=True)


if __name__ == "__main__":
    main()
