"""Clusters on a map: the hills of the density of its points.

The density is estimated on a grid with a Gaussian kernel. Hills are found from the highest cell down. A hill that rises
little above its saddle to a higher hill is merged into that higher hill. This is the persistence-based mode seeking of
Chazal, Guibas, Oudot and Skraba (ToMATo, J. ACM 2013), with the ratio of peak to saddle as prominence. So the clusters
are the ones visible on the map, the points determine the number of clusters, and the result is deterministic.

Letters: n points, G cells along a side of the grid, m occupied cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BANDWIDTH = 0.2
"""Bandwidth of the kernel as a fraction of Silverman's rule, which is for one Gaussian cloud; a map has many clouds."""

PROMINENCE = 1.3
"""Smallest prominence of a cluster: the ratio of a hill's peak to its saddle to a higher hill."""

NOISE = 2.5
"""Smallest height of a hill above its saddle, in standard deviations of the density; lower hills may be chance."""

MOST = 60
"""Largest number of clusters by default; a map with more names cannot be read."""

LEAST_SHARE, LEAST = 500, 3
"""A hill with fewer than n / 500 points, or fewer than 3, is merged into the nearest hill."""

CELLS, LARGEST = 2.0, 512
"""Number of grid cells per bandwidth, and largest number of cells along a side of the map, without its margin."""


@dataclass(frozen=True)
class _Hills:
    """Cells by descending density, each with the hill that it belongs to, and the peaks.

    hill: (m,) the number of the hill on whose peak the steepest ascent from a cell ends.
    peaks: (p,) the density at each hill's peak.
    parents: (p,) the higher hill that is reached over the highest saddle; the hill itself if there is none.
    prominences: (p,) density of the peak over that of the saddle; infinite without a saddle.
    """

    hill: NDArray[np.int64]
    peaks: NDArray[np.float64]
    parents: NDArray[np.int64]
    prominences: NDArray[np.float64]


def find_hills(positions: NDArray[np.float32], most: int | None = None) -> NDArray[np.int32]:
    """Returns the cluster number of each of (n, 2) points: (n,). Cluster 0 is the largest.

    most: the largest number of clusters; None for all prominent ones, at most `MOST`.
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
    """Returns the number of points in each cell, smoothed with a Gaussian kernel: (G, G'), rows by y."""
    reach = int(np.ceil(3 * bandwidth))
    width, height = cells.max(0) + reach + 2
    counts = np.zeros((height, width))
    np.add.at(counts, (cells[:, 1], cells[:, 0]), 1)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(bandwidth, 1e-9)) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):  # only empty cells are rolled around the edge: `_cells_of` leaves a margin
        counts = sum(
            weight * np.roll(counts, shift, axis)
            for shift, weight in zip(range(-reach, reach + 1), kernel, strict=True)
        )
    return counts


def _climb(density: NDArray[np.float64]) -> _Hills:
    """Finds the hills and their saddles in one pass over the non-empty cells, from the highest to the lowest."""
    width, flat = density.shape[1], density.ravel()
    order = np.argsort(-flat, kind="stable")
    order = order[: int((flat > 0).sum())]
    around = (-width - 1, -width, -width + 1, -1, 1, width - 1, width, width + 1)
    hill_of: dict[int, int] = {}
    hill: list[int] = []
    peaks: list[float] = []
    parents: list[int] = []
    prominences: list[float] = []
    joined: list[int] = []  # by hill: the hill that it was merged into

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
            tops = sorted({root(each) for each in near})  # hills with lower numbers have higher peaks
            for lower in tops[1:]:
                parents[lower], prominences[lower], joined[lower] = tops[0], peaks[lower] / value, tops[0]
        hill_of[cell] = number
        hill.append(number)
    return _Hills(np.array(hill), np.array(peaks), np.array(parents), np.array(prominences))


def _choose(hills: _Hills, bandwidth: float, most: int | None) -> NDArray[np.bool_]:
    """Returns True for each hill that is kept, (p,): the most prominent; of equally prominent, the higher.

    bandwidth: in cells. The variance of a density d, in points per cell, is d / (4 pi bandwidth²), that of a smoothed
    Poisson count.
    """
    rise = hills.peaks - hills.peaks / hills.prominences
    real = rise >= NOISE * np.sqrt(hills.peaks / (4 * np.pi * bandwidth**2))
    ranked = np.lexsort((-hills.peaks, -hills.prominences, ~real))
    enough = int((real if most is not None else real & (hills.prominences >= PROMINENCE)).sum())
    kept = np.zeros(len(ranked), bool)
    kept[ranked[: max(1, min(enough, MOST if most is None else most))]] = True
    return kept


def _follow(hills: _Hills, kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Returns the hill that each hill is merged into, (p,): itself if it is kept, else its nearest kept ancestor.

    A hill without a kept ancestor is merged into the highest hill of its island.
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
    """Numbers clusters from 0 by descending size; clusters of equal size are ordered by their first point."""
    _, first, place, counts = np.unique(found, return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((first, -counts))
    number = np.empty(len(order), np.int32)
    number[order] = np.arange(len(order))
    renumbered: NDArray[np.int32] = number[place]
    return renumbered
