"""Clusters on a map: the hills of the density of its points.

The density is estimated on a grid with a normal kernel. Hills are found from the highest cell down, and a hill that
rises little above the saddle to a higher one belongs to that one: the mode-seeking by persistence of Chazal, Guibas,
Oudot and Skraba (ToMATo, J. ACM 2013), with the ratio of peak and saddle as prominence. So clusters are what the eye
sees on the map, their number comes from the points, and nothing is drawn at random.

Letters: n points, G cells along a side of the grid, m occupied cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BANDWIDTH = 0.2
"""Of the kernel, over that of Silverman's rule for one normal cloud of points; a map has many."""

PROMINENCE = 1.3
"""Least ratio of a hill's peak to its saddle to a higher one."""

NOISE = 2.5
"""Least height of a hill over its saddle, in standard deviations of the estimated density: lower ones are chance."""

MOST = 60
"""Clusters, if no number is given: more names than that nobody can read."""

LEAST_SHARE, LEAST = 500, 3
"""A hill of fewer than n / 500 points, or 3, is part of the nearest one."""

CELLS, LARGEST = 2.0, 512
"""Cells to a bandwidth, and largest number of cells along a side."""


@dataclass(frozen=True)
class _Hills:
    """Cells by descending density, each with the hill that it belongs to, and the peaks.

    hill: (m,) the number of the peak that a cell's steepest way up leads to. peaks: (p,) their densities.
    parents: (p,) the higher hill across the highest saddle, itself if there is none. prominences: (p,) peak / saddle.
    """

    hill: NDArray[np.int64]
    peaks: NDArray[np.float64]
    parents: NDArray[np.int64]
    prominences: NDArray[np.float64]


def find_hills(positions: NDArray[np.float32], most: int | None = None) -> NDArray[np.int32]:
    """Returns the cluster of each of (n, 2) points, numbered from 0, the largest first: (n,).

    most: the largest number of clusters; None for as many as are prominent, and `MOST` at most.
    """
    cells, bandwidth = _cells_of(positions)
    density = _smooth(cells, bandwidth)
    at = cells[:, 1] * density.shape[1] + cells[:, 0]
    hills = _climb(density)
    order = np.argsort(-density, axis=None, kind="stable")[: len(hills.hill)]
    of_cell = np.full(density.size, -1, np.int64)
    of_cell[order] = hills.hill
    kept = _choose(hills, max(bandwidth, 0.3), most)
    found = _follow(hills, kept)[of_cell[at]]
    return _number(_join(found, kept, positions))


def _cells_of(positions: NDArray[np.float32]) -> tuple[NDArray[np.int64], float]:
    """Returns the cell of each point, (n, 2), and the bandwidth in cells."""
    n = len(positions)
    low, high = positions.min(0).astype(np.float64), positions.max(0).astype(np.float64)
    spread = float(positions.astype(np.float64).std(0).mean())
    width = max(BANDWIDTH * spread * n ** (-1 / 6), 1e-12)  # Silverman's rule in two dimensions
    extent = max(float((high - low).max()), 1e-12)
    cell = max(width / CELLS, extent / LARGEST)
    bandwidth = width / cell
    margin = int(np.ceil(3 * bandwidth)) + 1
    return ((positions - low) / cell).astype(np.int64) + margin, bandwidth


def _smooth(cells: NDArray[np.int64], bandwidth: float) -> NDArray[np.float64]:
    """Counts the points in each cell and smooths with a normal kernel: (G, G'), rows by y."""
    reach = int(np.ceil(3 * bandwidth))
    width, height = cells.max(0) + reach + 2
    counts = np.zeros((height, width))
    np.add.at(counts, (cells[:, 1], cells[:, 0]), 1)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(bandwidth, 1e-9)) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):  # what is rolled around the edge is empty: `_cells_of` leaves a margin
        counts = sum(
            weight * np.roll(counts, shift, axis)
            for shift, weight in zip(range(-reach, reach + 1), kernel, strict=True)
        )
    return counts


def _climb(density: NDArray[np.float64]) -> _Hills:
    """Goes through the cells with any density from the highest to the lowest, and finds hills and their saddles."""
    width, flat = density.shape[1], density.ravel()
    order = np.argsort(-flat, kind="stable")
    order = order[: int((flat > 0).sum())]
    around = (-width - 1, -width, -width + 1, -1, 1, width - 1, width, width + 1)
    hill_of: dict[int, int] = {}
    hill: list[int] = []
    peaks: list[float] = []
    parents: list[int] = []
    prominences: list[float] = []
    joined: list[int] = []  # by hill: the one that it has become part of

    def root(number: int) -> int:
        while joined[number] != number:
            joined[number] = joined[joined[number]]
            number = joined[number]
        return number

    for cell, value in zip(order.tolist(), flat[order].tolist(), strict=True):
        near = [hill_of[cell + step] for step in around if cell + step in hill_of]
        if not near:
            number = len(peaks)
            peaks.append(value)
            parents.append(number)
            prominences.append(np.inf)
            joined.append(number)
        else:
            highest = max((cell + step for step in around if cell + step in hill_of), key=lambda c: (flat[c], -c))
            number = hill_of[highest]
            tops = sorted({root(each) for each in near})  # the lower its number, the higher a peak
            for lower in tops[1:]:
                parents[lower], prominences[lower], joined[lower] = tops[0], peaks[lower] / value, tops[0]
        hill_of[cell] = number
        hill.append(number)
    return _Hills(np.array(hill), np.array(peaks), np.array(parents), np.array(prominences))


def _choose(hills: _Hills, bandwidth: float, most: int | None) -> NDArray[np.bool_]:
    """Returns which hills stand for themselves, (p,): the most prominent; of equally prominent ones, the higher.

    bandwidth: in cells. A density d in points per cell has the variance d / (4 pi bandwidth²), as counts do.
    """
    rise = hills.peaks - hills.peaks / hills.prominences
    real = rise >= NOISE * np.sqrt(hills.peaks / (4 * np.pi * bandwidth**2))
    ranked = np.lexsort((-hills.peaks, -hills.prominences, ~real))
    enough = int((real if most is not None else real & (hills.prominences >= PROMINENCE)).sum())
    kept = np.zeros(len(ranked), bool)
    kept[ranked[: max(1, min(enough, MOST if most is None else most))]] = True
    return kept


def _follow(hills: _Hills, kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Returns for each hill the one that it belongs to, (p,): the nearest of its parents that is kept.

    A hill on an island of its own that is not kept remains itself.
    """
    target = np.arange(len(kept))
    for number in range(len(kept)):  # parents have lower numbers
        if not kept[number]:
            target[number] = target[hills.parents[number]]
    return target


def _join(found: NDArray[np.int64], kept: NDArray[np.bool_], positions: NDArray[np.float32]) -> NDArray[np.int64]:
    """Gives the points of hills that are not kept, or have too few points, to the hill with the nearest centre."""
    numbers, place, counts = np.unique(found, return_inverse=True, return_counts=True)
    large = kept[numbers] & (counts >= max(LEAST, len(found) // LEAST_SHARE))
    if not large.any():
        large = counts == counts.max()
    centres = np.stack([np.bincount(place, positions[:, axis]) / counts for axis in (0, 1)], 1)
    away = ((centres[:, None] - centres[None, large]) ** 2).sum(2)
    target = np.where(large, numbers, numbers[large][away.argmin(1)])
    joined: NDArray[np.int64] = target[place]
    return joined


def _number(found: NDArray[np.int64]) -> NDArray[np.int32]:
    """Numbers clusters from 0 by descending size; of equal ones the one with the first point comes first."""
    _, first, place, counts = np.unique(found, return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((first, -counts))
    number = np.empty(len(order), np.int32)
    number[order] = np.arange(len(order))
    renumbered: NDArray[np.int32] = number[place]
    return renumbered
