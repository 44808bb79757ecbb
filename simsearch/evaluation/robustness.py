"""How far a picture may be changed and still find its original: graded changes, and the original's place.

Every change is drawn from the picture's number and the strength alone, so two features see the same pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from simsearch.common.intervals import Interval
from simsearch.errors import UsageError
from simsearch.search import similarity

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.engine import Engine

    Random = np.random.Generator
    Progress = Callable[[int, int], None]
from simsearch.images.perturb import CHANGES


@dataclass(frozen=True)
class RobustnessPoint:
    """One change at one strength. first: how often no other item was nearer than the original. distance: the mean one
    to the original, in units of the median distance of random pairs."""

    change: str
    strength: float
    first: Interval
    distance: float


def perceptual_hash(image: Image.Image) -> NDArray[np.float32]:
    """(64,) of 0 and 1: the signs of the 8 x 8 lowest DCT frequencies of a 32 x 32 grey image against their median.

    The Euclidean distance of two is the root of the Hamming distance."""
    grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    angles = np.pi * np.arange(8)[:, None] * (2 * np.arange(32)[None, :] + 1) / 64
    low = (np.cos(angles) @ grey @ np.cos(angles).T).ravel()
    return (low > np.median(low)).astype(np.float32)


def hashes(images: Sequence[Image.Image]) -> NDArray[np.float32]:
    """(n, 64) perceptual hashes."""
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
    """Changes each original and looks it up. rows: where their features are in `base` (N, D); n, N >= 1.

    Items with exactly the original's features count as the original. Raises UsageError for an unknown change.
    """
    for name in changes:
        if name not in CHANGES:
            raise UsageError(f"no change is called {name!r}", hint=f"one of {', '.join(CHANGES)}")
    sample = np.random.default_rng(seed).choice(len(base), min(512, len(base)), replace=False)
    unit = similarity.median(similarity.quantiles(base[np.sort(sample)].astype(np.float16))) or 1.0
    blocks = [base[n : n + 2048].astype(np.float32) for n in range(0, len(base), 2048)]
    squares = np.concatenate([np.einsum("nd,nd->n", block, block) for block in blocks])
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
    """For each query, whether no row is nearer than the one at its place in `rows`, and how far that one is.

    A float32 matrix product leaves out what is certainly farther; the others are measured in float64."""
    products = np.concatenate([base[n : n + 2048].astype(np.float32) @ queries.T for n in range(0, len(base), 2048)])
    found = []
    for query, row, product in zip(queries, rows, products.T, strict=True):
        length = float(query @ query)
        squared = squares + np.float32(length) - 2 * product
        slack = 1e-4 * (length + float(squares.max()))
        near = np.append(np.flatnonzero(squared <= squared[row] + slack), row)
        difference = base[near].astype(np.float64) - query
        exact = np.einsum("nd,nd->n", difference, difference)
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
    """`measure` for `count` random items of an index, by the name of its model; `hash_too`: and for a perceptual hash
    of all its items, under "perceptual hash". Raises UsageError for an index without readable images."""
    with engine.store.reading() as reader:
        ids, places = reader.ids()
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
    """Two panels a change, from weak to strong: how often the original is first, in percent, and how far from it the
    changed picture lies, in units of the median random pair; a line a feature."""
    from simsearch.reports import charts

    width, height, head = 440, 230, 34
    names = list(dict.fromkeys(point.change for points in found.values() for point in points))
    columns = 4 if len(names) > 1 else 2
    sheet = Image.new("RGB", (width * columns, head + height * -(-2 * len(names) // columns)), charts.PAPER)
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
            panel = charts.plot(
                series,
                name,
                CHANGES[name][2],
                words,
                width=width,
                height=height,
                lowest=0.0,
                highest=top,
                names=strengths,
                legend=False,
            )
            row, column = divmod(2 * number + half, columns)
            sheet.paste(panel, (width * column, head + height * row))
    return sheet
