#!/usr/bin/env python3
"""The engines side by side on the same pictures: how well their features agree, and how fast they are.

    scripts/bench/engines.py SOURCE… [--model NAME|FILE] [--untrained] [--limit N] [--rounds 5] [--seconds 1]

SOURCE is what `train` takes, pictures with labels; not those that the ranges of int8 were measured on. Each picture
queries once, itself left out, over features as an index stores them. Against float32 in ONNX Runtime are given the
cosine (median and least), the share of the six nearest that both find, and P@6 by label; then what becomes of the six
nearest where one engine queries what another one made. float16 is what a GPU computes in: products in float16, sums
in float32; without a GPU it is shown on the CPU for the agreement, and takes no part in the race. Images/s are of
inference alone, from pixels to features, for batches of 1, 16 and 64: medians of rounds in which every engine takes
its turn, and the median of each round's ratio to float32. CPU ms are processor time an image, which other work on the
machine disturbs less.

For `--model torchvision/NAME`, its export in ONNX Runtime runs beside torch; --untrained takes random weights, which
need no download and are as fast.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if __name__ == "__main__":  # in .venv, whichever Python was called
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from in_venv import reexecute

    reexecute()

import numpy as np
import onnxruntime
import torch
import torchvision

import simsearch
from simsearch.common import float16
from simsearch.errors import ImageError
from simsearch.images import decode
from simsearch.images.preprocessing import Preprocessing
from simsearch.images.sources import labelled
from simsearch.models import load, precision, registry
from simsearch.models.base import Model
from simsearch.models.onnx import runtime
from simsearch.models.torch import runtime as torch_runtime
from simsearch.models.torch.torchvision import TorchvisionModel

BATCHES = (1, 16, 64)
FLOAT, INT8 = "onnxruntime-cpu", "onnxruntime-cpu-int8"


def pictures(sources: list[str], recipe: Preprocessing, limit: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(N, S, S, 3) uint8 pictures and (N,) labels."""
    found = labelled.list_labelled(sources)
    if limit:
        found = [found[n] for n in np.unique(np.linspace(0, len(found) - 1, min(limit, len(found))).astype(int))]

    def pixels(picture: labelled.LabelledImage) -> np.ndarray | None:
        try:
            return recipe.pixels(decode.decode_image(picture.source.read(picture.path), recipe.resize).image)
        except ImageError:
            return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = list(pool.map(pixels, found))
    kept = [n for n, picture in enumerate(decoded) if picture is not None]
    names = np.array([found[n].label for n in kept])
    return np.stack([decoded[n] for n in kept]), np.unique(names, return_inverse=True)[1]


def features(model: Model | Half, pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([model.features(pixels[n : n + 64]) for n in range(0, len(pixels), 64)])


def found_by(queries: np.ndarray, base: np.ndarray) -> np.ndarray:
    """The six nearest others in `base` of each row of `queries`: (N, 6)."""
    queries, base = (float16.to_float16(x).astype(np.float32) for x in (queries, base))
    squares, rows = np.einsum("nd,nd->n", base, base), []
    for start in range(0, len(base), 512):
        distances = squares - 2 * queries[start : start + 512] @ base.T
        distances[np.arange(len(distances)), np.arange(start, start + len(distances))] = np.inf
        rows.append(np.argpartition(distances, 6, 1)[:, :6])
    return np.concatenate(rows)


def common(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean([len(set(x) & set(y)) / 6 for x, y in zip(a.tolist(), b.tolist(), strict=True)]))


def agree(rows: dict[str, np.ndarray], labels: np.ndarray) -> None:
    reference = rows[FLOAT]
    best = found_by(reference, reference)

    def share(nearest: np.ndarray) -> float:
        return float((labels[nearest] == labels[:, None]).mean())

    print(f"\n{'engine':24} {'cosine: median':>15} {'least':>8} {'top-6 in common':>16} {'P@6':>7}")
    for name, mine in rows.items():
        lengths = np.linalg.norm(reference, axis=1) * np.linalg.norm(mine, axis=1)
        cosine = np.einsum("nd,nd->n", reference.astype(np.float64), mine) / np.maximum(lengths, 1e-12)
        nearest = found_by(mine, mine)
        print(
            f"{name:24} {np.median(cosine):15.6f} {cosine.min():8.5f} {common(best, nearest):16.4f}"
            f" {share(nearest):7.4f}"
        )
    print(f"\n{'queries by':24} {'items by':24} {'top-6 in common':>16} {'P@6':>7}")
    some = np.random.default_rng(0).random((len(reference), 1)) < 0.5
    for other in [name for name in rows if name == INT8 or name.endswith("float16")]:
        bases = {FLOAT: reference, other: rows[other], "half of each": np.where(some, rows[other], reference)}
        for asking in (FLOAT, other):
            for made, rows_searched in bases.items():
                nearest = found_by(rows[asking], rows_searched)
                print(f"{asking:24} {made:24} {common(best, nearest):16.4f} {share(nearest):7.4f}")


class Half:
    """A weights file's model in torch whose network is in float16, whatever the device."""

    def __init__(self, model: torch_runtime.TorchModel) -> None:
        self.engine, self.runner = f"torch-{model.runner.device.type}-float16", model.runner
        self.network = copy.deepcopy(model.network).half()

    def features(self, pixels: np.ndarray) -> np.ndarray:
        return self.runner.run(self.network.features, pixels)


@contextlib.contextmanager
def float32() -> Iterator[None]:
    before = os.environ.get("SIMSEARCH_PRECISION")
    os.environ["SIMSEARCH_PRECISION"] = "float32"
    try:
        yield
    finally:
        del os.environ["SIMSEARCH_PRECISION"]
        if before is not None:
            os.environ["SIMSEARCH_PRECISION"] = before


@contextlib.contextmanager
def untrained(wanted: bool) -> Iterator[None]:
    """Networks of torchvision get random weights, and a cache that nothing else reads."""
    if not wanted:
        yield
        return
    original, before = torchvision.models.get_model, os.environ.get("SIMSEARCH_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        torchvision.models.get_model = lambda name, weights: (torch.manual_seed(0), original(name, weights=None))[1]
        os.environ["SIMSEARCH_CACHE"] = folder
        try:
            yield
        finally:
            torchvision.models.get_model = original
            del os.environ["SIMSEARCH_CACHE"]
            if before is not None:
                os.environ["SIMSEARCH_CACHE"] = before


def models(name: str) -> list[Model | Half]:
    """Every engine that a model has here, ONNX Runtime in float32 first."""
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    if load.is_torchvision(name):
        return [load.load_model(name, "cpu"), *(TorchvisionModel(name, device) for device in devices)]
    if name.endswith(".onnx"):
        return [load.load_model(name, "cpu")]
    weights = registry.find_weights(name)
    made: list[Model | Half] = [runtime.OnnxModel(weights)]
    if precision.can_quantize(weights):
        made.append(runtime.OnnxModel(weights, precision="int8"))
    with float32():
        made += [torch_runtime.TorchModel(weights, device) for device in devices]
    return [*made, Half(made[-1])]


def race(engines: dict, pixels: np.ndarray, rounds: int, seconds: float) -> None:
    """Each engine runs for `seconds` in each round; one round beforehand does not count."""
    print(f"\nmedians of {rounds} rounds of {seconds:g} s, every engine in each")
    print(f"{'engine':24} {'batch':>5} {'images/s':>9} {'x float32':>10} {'CPU ms':>8}")
    for batch in BATCHES:
        rates: dict[str, list[float]] = {name: [] for name in engines}
        spent: dict[str, list[float]] = {name: [] for name in engines}
        for number in range(rounds + 1):
            for name, model in engines.items():
                done, cpu, start = 0, time.process_time(), time.perf_counter()
                while done == 0 or time.perf_counter() - start < seconds:
                    first = done % max(1, len(pixels) - batch + 1)
                    model.features(pixels[first : first + batch])
                    done += batch
                if number:
                    rates[name].append(done / (time.perf_counter() - start))
                    spent[name].append(1000 * (time.process_time() - cpu) / done)
        for name in engines:
            ratio = statistics.median(a / b for a, b in zip(rates[name], rates[FLOAT], strict=True))
            print(
                f"{name:24} {batch:5} {statistics.median(rates[name]):9.0f} {ratio:10.2f}"
                f" {statistics.median(spent[name]):8.2f}"
            )


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="+")
    parser.add_argument("--model", default=registry.DEFAULT)
    parser.add_argument("--untrained", action="store_true", help="random weights for torchvision/NAME")
    parser.add_argument("--limit", type=int, help="number of pictures, evenly from all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    with untrained(options.untrained):
        engines = {model.engine: model for model in models(options.model)}
    pixels, labels = pictures(options.source, engines[FLOAT].recipe, options.limit)
    print(f"{', '.join(options.source)}: {len(pixels):,} pictures, {labels.max() + 1} labels; model {options.model}")
    vnni = "VNNI" if precision.has_vnni() else "no VNNI"
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    print(f"{processor()} ({vnni}), {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}{gpu}")
    print(
        f"simsearch {simsearch.__version__}, ONNX Runtime {onnxruntime.__version__}, torch {torch.__version__},"
        f" Python {platform.python_version()}"
    )
    agree({name: features(model, pixels) for name, model in engines.items()}, labels)
    race(
        {name: model for name, model in engines.items() if name != "torch-cpu-float16"},
        pixels,
        options.rounds,
        options.seconds,
    )


if __name__ == "__main__":
    main()
