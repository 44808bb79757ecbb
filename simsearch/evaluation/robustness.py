"""Robustness of features: how often a changed picture still finds its original, for changes of increasing strength.

Random changes depend only on the seed and on the picture's number, so all kinds of features are measured on the same
changed pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from simsearch.common import suggestions
from simsearch.common.distances import squared_norms
from simsearch.common.intervals import Interval
from simsearch.common.progress import Progress
from simsearch.errors import UsageError
from simsearch.images.perturb import CHANGES
from simsearch.reports import charts
from simsearch.reports.tiles import PAPER
from simsearch.search import similarity

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.engine import Engine


@dataclass(frozen=True)
class RobustnessPoint:
    """The result for one change at one strength.

    first: the fraction of changed pictures for which no item is nearer than the original.
    distance: the mean distance between a changed picture and its original, divided by the median distance between two
    random items.
    """

    change: str
    strength: float
    first: Interval
    distance: float


def perceptual_hash(image: Image.Image) -> NDArray[np.float32]:
    """Returns the perceptual hash of an image: (64,) float32, each value 0 or 1.

    The image is made grey and scaled to 32 x 32 pixels. Each value belongs to one of the 8 x 8 lowest frequencies of
    its discrete cosine transform: the value is 1 if the coefficient exceeds the median of all 64. The Euclidean
    distance of two hashes is the square root of their Hamming distance.
    """
    grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    angles = np.pi * np.arange(8)[:, None] * (2 * np.arange(32)[None, :] + 1) / 64
    low = (np.cos(angles) @ grey @ np.cos(angles).T).ravel()
    return (low > np.median(low)).astype(np.float32)


def hashes(images: Sequence[Image.Image]) -> NDArray[np.float32]:
    """Returns the perceptual hashes of n images: (n, 64) float32."""
    return np.stack([perceptual_hash(image) for image in images])


def measure(
    originals: Sequence[Image.Image],
    rows: NDArray[np.int64],
    base: NDArray[np.floating[Any]],
    features: Callable[[Sequence[Image.Image]], NDArray[np.float32]],
    *,
    changes: Sequence[str] = tuple(CHANGES),
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> list[RobustnessPoint]:
    """Changes each of n pictures and searches for the original; returns a result for each strength of each change.

    originals: the unchanged pictures.
    rows: (n,) the row of each original in `base`.
    base: (N, D) the features of all items.
    features: a function that computes the features (n, D) of n images.
    changes: names in `simsearch.images.perturb.CHANGES`.
    progress: called with the number of strengths done and the number of all strengths.
    Another item that has exactly the features of the original counts as the original.
    Raises UsageError for an unknown change.
    """
    for name in changes:
        if name not in CHANGES:
            raise UsageError(f"there is no change named {name!r}", hint=suggestions.hint(name, list(CHANGES)))
    sample = np.random.default_rng(seed).choice(len(base), min(512, len(base)), replace=False)
    unit = similarity.median(similarity.quantiles(base[np.sort(sample)].astype(np.float16))) or 1.0
    blocks = [base[n : n + 2048].astype(np.float32) for n in range(0, len(base), 2048)]
    squares = np.concatenate([squared_norms(block) for block in blocks])
    del blocks
    jobs = [(name, strength) for name in changes for strength in CHANGES[name][1]]
    points = []
    for done, (name, strength) in enumerate(jobs, 1):
        first, total = 0, 0.0
        for start in range(0, len(originals), 32):
            part = slice(start, start + 32)
            made = [
                CHANGES[name][0](image, strength, np.random.default_rng((seed, start + number)))
                for number, image in enumerate(originals[part])
            ]
            for nearest, distance in _lookup(base, squares, features(made), rows[part]):
                first += nearest
                total += distance
        points.append(
            RobustnessPoint(
                name, strength, Interval.of_proportion(first, len(originals)), total / len(originals) / unit
            )
        )
        progress(done, len(jobs))
    return points


def _lookup(
    base: NDArray[np.floating[Any]], squares: NDArray[np.float32], queries: NDArray[np.float32], rows: NDArray[np.int64]
) -> list[tuple[bool, float]]:
    """Returns a pair for each query: True if no item is nearer than the original, and the distance to the original.

    base: (N, D) the features of all items. squares: (N,) their squared norms.
    queries: (n, D) the features of changed pictures. rows: (n,) the row of each query's original in `base`.
    A float32 matrix product excludes items that are certainly farther than the original; the others are measured in
    float64.
    """
    products = np.concatenate([base[n : n + 2048].astype(np.float32) @ queries.T for n in range(0, len(base), 2048)])
    found = []
    for query, row, product in zip(queries, rows, products.T, strict=True):
        length = float(query @ query)
        squared = squares + np.float32(length) - 2 * product
        slack = 1e-4 * (length + float(squares.max()))
        near = np.append(np.flatnonzero(squared <= squared[row] + slack), row)
        difference = base[near].astype(np.float64) - query
        exact = squared_norms(difference)
        found.append((bool(exact[-1] <= exact.min()), float(np.sqrt(exact[-1]))))
    return found


def of_index(
    engine: Engine,
    count: int = 200,
    changes: Sequence[str] = tuple(CHANGES),
    seed: int = 0,
    *,
    hash_too: bool = False,
    progress: Progress = lambda done, total: None,
) -> dict[str, list[RobustnessPoint]]:
    """Measures the robustness of an index's features, with `count` random items as originals.

    Returns the results of `measure` in a dictionary. The key is the name of the model. For features other than fc7
    (option `--features`), the key ends with their name.
    hash_too: True to measure perceptual hashes as well, whose key is "perceptual hash".
    changes, seed, progress: as for `measure`. Raises UsageError if no image of the index can be read.
    """
    with engine.reading() as reader:
        ids, places = reader.ids_and_rows()
        base = reader.shards.read(places)
    order = np.random.default_rng(seed).permutation(len(ids))
    chosen: list[int] = []
    originals: list[Image.Image] = []
    for row in order.tolist():
        if len(chosen) == count:
            break
        image = engine.thumbnail(int(ids[row]))
        if image is not None:
            chosen.append(row)
            originals.append(image)
    if not originals:
        raise UsageError(f"no image of {engine.path} can be read")
    rows = np.array(chosen, np.int64)
    name = engine.meta.model + (f", {engine.meta.features}" if engine.meta.descriptor else "")
    found = {name: measure(originals, rows, base, engine.features, changes=changes, seed=seed, progress=progress)}
    if hash_too:
        others = [engine.thumbnail(int(number)) for number in ids]
        readable = np.flatnonzero([image is not None for image in others])
        table = hashes([image for image in others if image is not None])
        found["perceptual hash"] = measure(
            originals, np.searchsorted(readable, rows), table, hashes, changes=changes, seed=seed, progress=progress
        )
    return found


def draw(found: dict[str, list[RobustnessPoint]]) -> Image.Image:
    """Draws the results of `of_index`: two charts for each change, with a line for each kind of features.

    Both charts have the strengths of the change on the x axis. The first shows how often the original is the nearest
    item, in percent, with a band for the 95 % interval. The second shows the distance to the original, divided by the
    median distance of random items.
    """
    width, height, head = 440, 230, 34
    names = list(dict.fromkeys(point.change for points in found.values() for point in points))
    columns = 4 if len(names) > 1 else 2
    rows = -(-2 * len(names) // columns)
    sheet = Image.new("RGB", (charts.SCALE * width * columns, charts.SCALE * (head + height * rows)), PAPER)
    charts.legend(sheet, list(found), (16, head // 2))
    for number, name in enumerate(names):
        strengths = [f"{value:g}" for value in CHANGES[name][1]]
        for half, (words, top) in enumerate((("original first, %", 100.0), ("distance", 1.0))):
            series = {
                feature: [
                    (float(step), 100 * point.first.value if not half else point.distance)
                    for step, point in enumerate((point for point in points if point.change == name), 1)
                ]
                for feature, points in found.items()
            }
            bands = {} if half else {feature: _band(points, name) for feature, points in found.items()}
            panel = charts.plot(
                series,
                name,
                CHANGES[name][2],
                words,
                bands=bands,
                width=width,
                height=height,
                lowest=0.0,
                highest=top,
                names=strengths,
                legend=False,
            )
            row, column = divmod(2 * number + half, columns)
            sheet.paste(panel, (charts.SCALE * width * column, charts.SCALE * (head + height * row)))
    return sheet


def _band(points: Sequence[RobustnessPoint], change: str) -> list[tuple[float, float, float]]:
    """Returns (step, low, high) for each strength of a change; step is the number of the strength, from 1.

    low, high: the 95 % interval of how often the original is the nearest item, in percent.
    """
    chosen = [point.first for point in points if point.change == change]
    return [(float(step), 100 * first.low, 100 * first.high) for step, first in enumerate(chosen, 1)]
