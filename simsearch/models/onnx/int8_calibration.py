"""Calibrates int8: measures the ranges of activations, and the agreement of int8 features with float32 features.

The range of a channel is its largest activation on some images. `simsearch.models.onnx.int8` needs the ranges to
compute in 8-bit integers.
"""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from simsearch.common import float16
from simsearch.common.distances import squared_norms
from simsearch.errors import ImageError, UsageError
from simsearch.images import decode
from simsearch.images.sources import resolve
from simsearch.models import registry, weights
from simsearch.models.networks import build
from simsearch.models.onnx import int8
from simsearch.models.onnx.runtime import OnnxModel
from simsearch.models.torch.runtime import TorchRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from simsearch.images.preprocessing import Preprocessing
    from simsearch.models.registry import WeightsFile

MAX_IMAGES = 2048
"""Largest number of images used: half of them to measure the ranges, the other half to measure the agreement."""

MIN_IMAGES = 256
"""Smallest number of images. Among fewer, almost any two kinds of features agree on the six nearest neighbours."""

_MODULES = {
    "pool1": "conv.3",
    "relu2": "conv.5",
    "pool2": "conv.7",
    "relu3": "conv.9",
    "relu4": "conv.11",
    "relu5": "conv.13",
    "fc6": "hidden.2",
}
"""For each point of `int8.POINTS`, the module of the torch network `AlexNet` whose output is measured."""


@dataclass(frozen=True)
class Agreement:
    """The agreement of int8 features with float32 features.

    images: the number of images compared.
    top6: the fraction of an image's six nearest neighbours that are the same with both kinds of features; the mean over
    all images.
    cosine: the cosine between an image's int8 features and its float32 features; the median over all images.
    """

    images: int
    top6: float
    cosine: float


def calibrate(
    file: str, sources: Sequence[str], progress: Callable[[int, int], None] = lambda done, total: None
) -> Agreement:
    """Measures the ranges of activations and the agreement of int8 with float32, and writes both into a weights file.

    Returns the agreement. The tensors do not change. The file's SHA-256 changes, but existing indexes still accept the
    file, because its SHA-256 without the ranges is compared, too.
    file: the path of the weights file. sources: images like those that the model was trained on.
    progress: called with the number of images done and the number of all images.
    Raises UsageError if the file cannot be calibrated or has ranges already, or if there are fewer than `MIN_IMAGES`
    images.
    """
    if file in registry.BUILTIN:
        raise UsageError(
            f"{file} is a built-in model, which comes with its ranges of activations",
            hint="only a weights file of your own can be calibrated",
        )
    found = registry.find_weights(file)
    if found.card.architecture != "alexnet":
        raise UsageError(f"{file} is of architecture {found.card.architecture}; only alexnet can run in int8")
    if found.card.ranges:
        raise UsageError(f"{file} has ranges already", hint="indexes made with these ranges would not match new ranges")
    return calibrate_file(found.path, load_pixels(found.card.recipe, sources, progress))


def calibrate_file(path: Path, pixels: NDArray[np.uint8]) -> Agreement:
    """Does the work of `calibrate` with preprocessed images.

    pixels: (n, S, S, 3) uint8. The first, third, fifth image and so on are used for the ranges, the others for the
    agreement.
    """
    found = registry.find_weights(os.fspath(path.absolute()))
    found_ranges = measure(found, pixels[::2])
    weights.add_ranges(path, found_ranges)
    result = compare(registry.find_weights(found.name), pixels[1::2])
    weights.add_ranges(path, found_ranges, result.top6)
    return result


@torch.no_grad()
def measure(file: WeightsFile, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """Returns the ranges: for each of `int8.POINTS`, the largest activation of each channel, (channels,) float32.

    For fc6, the range is the largest activation of all channels, (1,).
    pixels: (n, S, S, 3) uint8, the images to measure on.
    """
    network = build.build_network(file.card.architecture, file.config).eval()
    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.read_tensors(file.path).items()})
    largest: dict[str, Any] = {}

    def record(point: str) -> Any:
        def hook(_: Any, __: Any, output: torch.Tensor) -> None:
            peak = output.amax((0, 2, 3)) if output.dim() == 4 else output.amax().reshape(1)
            largest[point] = torch.maximum(largest[point], peak) if point in largest else peak.clone()

        return hook

    handles = [network.get_submodule(_MODULES[point]).register_forward_hook(record(point)) for point in int8.POINTS]
    runner = TorchRunner(file.card.recipe, "cpu")
    for start in range(0, len(pixels), 64):
        runner.run(network.features, pixels[start : start + 64])
    for handle in handles:
        handle.remove()
    return {point: value.numpy() for point, value in largest.items()}


def compare(file: WeightsFile, pixels: NDArray[np.uint8]) -> Agreement:
    """Returns the agreement of int8 and float32 features of images. pixels: (n, S, S, 3) uint8."""
    rows = []
    for precision in registry.PRECISIONS:
        with tempfile.TemporaryDirectory() as folder:
            model = OnnxModel(file, precision=precision, folder=Path(folder))
            rows.append(np.concatenate([model.features(pixels[n : n + 64]) for n in range(0, len(pixels), 64)]))
    return agreement(*rows)


def agreement(reference: NDArray[np.float32], features: NDArray[np.float32]) -> Agreement:
    """Returns the agreement of two arrays (n, D) of features of the same images.

    The nearest neighbours are found among features in float16, as an index stores them.
    """
    first, second = nearest_rows(reference), nearest_rows(features)
    common = np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(first.tolist(), second.tolist(), strict=True)])
    a, b = reference.astype(np.float64), features.astype(np.float64)
    lengths = np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)
    return Agreement(len(a), float(common), float(np.median((a * b).sum(1) / lengths)))


def nearest_rows(features: NDArray[np.float32], k: int = 6) -> NDArray[np.int64]:
    """Returns, for each row of features (n, D), the numbers of the k nearest other rows, unordered: (n, k)."""
    x = float16.to_float16(features).astype(np.float32)
    squares = squared_norms(x)
    found = []
    for start in range(0, len(x), 512):
        distances = squares - 2 * x[start : start + 512] @ x.T
        distances[np.arange(len(distances)), np.arange(start, start + len(distances))] = np.inf
        found.append(np.argpartition(distances, min(k, len(x) - 2), 1)[:, :k])
    return np.concatenate(found)


def load_pixels(
    recipe: Preprocessing, sources: Sequence[str], progress: Callable[[int, int], None]
) -> NDArray[np.uint8]:
    """Decodes and preprocesses up to `MAX_IMAGES` images, evenly spaced in the list of all images: (n, S, S, 3) uint8.

    progress: called with the number of images done and the number of all images.
    Raises UsageError if fewer than `MIN_IMAGES` can be decoded.
    """
    opened = [resolve.resolve(os.fspath(name)) for name in sources]
    items = [(source, entry.path) for source in opened for entry in source.listing().entries if entry.problem is None]
    chosen = [items[n] for n in np.unique(np.linspace(0, len(items) - 1, min(len(items), MAX_IMAGES)).astype(int))]

    def load(item: Any) -> NDArray[np.uint8] | None:
        source, path = item
        try:
            return recipe.pixels(decode.decode_image(source.read(path), recipe.resize).image)
        except ImageError:
            return None

    kept = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, pixels in enumerate(pool.map(load, chosen), 1):
            kept += [] if pixels is None else [pixels]
            progress(done, len(chosen))
    for source in opened:
        source.close()
    if len(kept) < MIN_IMAGES:
        raise UsageError(f"{len(kept)} images are too few to measure ranges on", hint=f"use {MIN_IMAGES} or more")
    return np.stack(kept)
