"""What a weights file must know for the 8-bit engine: how far each activation reaches, measured on training images, and
how well the features then agree with those of float32."""

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

    from simsearch.models.registry import WeightsFile

MOST = 2048
"""Images that are measured; half of them set the ranges, the others judge."""

LEAST = 256
"""Fewer say little: among a few images nearly any features find the same six."""

_PLACES = {
    "pool1": "conv.3",
    "relu2": "conv.5",
    "pool2": "conv.7",
    "relu3": "conv.9",
    "relu4": "conv.11",
    "relu5": "conv.13",
    "fc6": "hidden.2",
}
"""The module of `simsearch.models.networks.alexnet.AlexNet` whose output each point is."""


@dataclass(frozen=True)
class Agreement:
    """How int8 and float32 compare on `images`: the share of their six nearest in common, the median cosine."""

    images: int
    top6: float
    cosine: float


def calibrate(
    file: str, sources: Sequence[str], progress: Callable[[int, int], None] = lambda done, total: None
) -> Agreement:
    """Measures the ranges of a weights file on images like those that it was trained on, and writes them into it.

    The tensors stay as they are; the file's SHA-256 changes, but indexes made before still know it. Raises UsageError.
    """
    if file in registry.BUILTIN:
        raise UsageError(f"{file} comes with its ranges", hint="-m FILE.safetensors")
    found = registry.find_weights(file)
    if found.card.architecture != "alexnet":
        raise UsageError(f"{file} is of architecture {found.card.architecture}; int8 runs AlexNet alone")
    if found.card.ranges:
        raise UsageError(f"{file} has its ranges already", hint="other ones would not fit the indexes that it made")
    return calibrate_file(found.path, _pixels(found, sources, progress))


def calibrate_file(path: Path, pixels: NDArray[np.uint8]) -> Agreement:
    """`calibrate` on (n, S, S, 3) uint8 images from the recipe: every other one sets the ranges, the rest judge."""
    found = registry.find_weights(os.fspath(path.absolute()))
    found_ranges = measure(found, pixels[::2])
    weights.add_ranges(path, found_ranges)
    verdict = compare(registry.find_weights(found.name), pixels[1::2])
    weights.add_ranges(path, found_ranges, verdict.top6)
    return verdict


@torch.no_grad()
def measure(file: WeightsFile, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """The largest activations over (n, S, S, 3) uint8 images, by point: (channels,) each, but (1,) for fc6."""
    network = build.build_network(file.card.architecture, file.config).eval()
    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.read_tensors(file.path).items()})
    largest: dict[str, Any] = {}

    def note(point: str) -> Any:
        def hook(_: Any, __: Any, output: torch.Tensor) -> None:
            reached = output.amax((0, 2, 3)) if output.dim() == 4 else output.amax().reshape(1)
            largest[point] = torch.maximum(largest[point], reached) if point in largest else reached.clone()

        return hook

    handles = [network.get_submodule(_PLACES[point]).register_forward_hook(note(point)) for point in int8.POINTS]
    runner = TorchRunner(file.card.recipe, "cpu")
    for start in range(0, len(pixels), 64):
        runner.run(network.features, pixels[start : start + 64])
    for handle in handles:
        handle.remove()
    return {point: value.numpy() for point, value in largest.items()}


def compare(file: WeightsFile, pixels: NDArray[np.uint8]) -> Agreement:
    """int8 against float32 on (n, S, S, 3) uint8 images."""
    rows = []
    for precision in registry.PRECISIONS:
        with tempfile.TemporaryDirectory() as folder:
            model = OnnxModel(file, precision=precision, folder=Path(folder))
            rows.append(np.concatenate([model.features(pixels[n : n + 64]) for n in range(0, len(pixels), 64)]))
    return agreement(*rows)


def agreement(reference: NDArray[np.float32], features: NDArray[np.float32]) -> Agreement:
    """How two engines' (n, D) features of the same images compare, as an index would store them."""
    first, second = nearest_rows(reference), nearest_rows(features)
    common = np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(first.tolist(), second.tolist(), strict=True)])
    a, b = reference.astype(np.float64), features.astype(np.float64)
    lengths = np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)
    return Agreement(len(a), float(common), float(np.median((a * b).sum(1) / lengths)))


def nearest_rows(features: NDArray[np.float32], k: int = 6) -> NDArray[np.int64]:
    """The k nearest others of each of (n, D) features: (n, k) rows."""
    x = float16.to_float16(features).astype(np.float32)
    squares = np.einsum("nd,nd->n", x, x)
    found = []
    for start in range(0, len(x), 512):
        distances = squares - 2 * x[start : start + 512] @ x.T
        distances[np.arange(len(distances)), np.arange(start, start + len(distances))] = np.inf
        found.append(np.argpartition(distances, min(k, len(x) - 2), 1)[:, :k])
    return np.concatenate(found)


def _pixels(file: WeightsFile, sources: Sequence[str], progress: Callable[[int, int], None]) -> NDArray[np.uint8]:
    """Up to `MOST` images spread evenly over the sources, as the network sees them. Raises UsageError for too few."""
    opened = [resolve.resolve(os.fspath(name)) for name in sources]
    places = [(source, entry.path) for source in opened for entry in source.listing().entries if entry.problem is None]
    chosen = [places[n] for n in np.unique(np.linspace(0, len(places) - 1, min(len(places), MOST)).astype(int))]
    recipe = file.card.recipe

    def load(place: Any) -> NDArray[np.uint8] | None:
        source, path = place
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
    if len(kept) < LEAST:
        raise UsageError(f"{len(kept)} images are too few to measure ranges on", hint=f"{LEAST} or more")
    return np.stack(kept)
