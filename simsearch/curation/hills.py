"""Finds the clusters of a map: hills in the density of its points.

The density is the number of points in each cell of a grid, smoothed with a Gaussian kernel. Each local maximum of the
density is the peak of a hill. A cell belongs to the hill whose peak is reached by the steepest ascent from the cell.
The saddle of a hill is the highest cell where the hill meets a higher hill. The prominence of a hill is the density
at its peak divided by the density at its saddle. A hill with low prominence is merged into the higher hill. This method
is ToMATo (Chazal, Guibas, Oudot and Skraba, J. ACM 2013).
The number of clusters follows from the points, and the same points always give the same clusters.

Shape letters: n points, G x G' cells of the grid, m cells with a density above 0, p hills.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BANDWIDTH = 0.2
"""Bandwidth of the kernel, as a fraction of the bandwidth that Silverman's rule gives.

The rule assumes a single Gaussian cloud of points, but a map has many smaller clouds.
"""

PROMINENCE = 1.3
"""Smallest prominence of a hill that becomes a cluster: density at the peak divided by density at the saddle."""

NOISE = 2.5
"""Smallest height of a cluster's peak above its saddle, in standard deviations of the density.

Lower hills may be due to chance.
"""

MOST = 60
"""Largest number of clusters by default; on a map with more names, people could not read the names."""

LEAST_SHARE, LEAST = 500, 3
"""A hill with fewer than n / LEAST_SHARE points, or fewer than LEAST points, is merged into the hill nearest to it."""

CELLS, LARGEST = 2.0, 512
"""Number of grid cells per bandwidth, and largest number of cells along a side of the map without its margin.

If the map would need more cells than that, its cells are made larger.
"""


@dataclass(frozen=True)
class _Hills:
    """The hills of a density, numbered from 0 by descending density of their peaks.

    hill: (m,) the number of each cell's hill, for the cells in the order of descending density.
    peaks: (p,) the density at each hill's peak.
    parents: (p,) the number of each hill's parent: the hill that it would be merged into, which is the highest hill at
    its saddle. Hills that meet at a cell higher than this saddle count as one hill, with the number of the highest of
    them. A hill without a saddle is its own parent.
    prominences: (p,) the density at the peak divided by the density at the saddle; infinite without a saddle.
    """

    hill: NDArray[np.int64]
    peaks: NDArray[np.float64]
    parents: NDArray[np.int64]
    prominences: NDArray[np.float64]


def find_hills(positions: NDArray[np.float32], most: int | None = None) -> NDArray[np.int32]:
    """Returns the number of each point's cluster: (n,) int32. Cluster 0 is the largest.

    positions: (n, 2).
    most: the largest number of clusters. The hills with the highest prominence become clusters, even if their
    prominence is below PROMINENCE. None: all hills with a prominence of at least PROMINENCE, up to `MOST`.
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
    """Returns the grid cell of each point, (n, 2) int64 as column and row, and the kernel's bandwidth in cells.

    The grid begins with a margin of empty cells.
    """
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
    """Returns the density: the number of points in each cell, smoothed with a Gaussian kernel.

    cells: (n, 2), the column (x) and row (y) of the cell of each point.
    bandwidth: the kernel's standard deviation, in cells.
    The result is (G, G') float64, indexed by row, then column.
    """
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
    """Finds the hills and their saddles in one pass over the cells with a density above 0, the highest cell first."""
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
    """Returns which hills are kept as clusters: (p,), True for a kept hill.

    The most prominent hills are kept; between equally prominent hills, the one with the higher peak. Hills that rise
    too little above their saddle (see `NOISE`) are dropped. At least one hill is kept.
    bandwidth: the kernel's standard deviation, in cells. `NOISE` is a multiple of the density's standard deviation. If
    the number of points in a cell is Poisson distributed, a smoothed density d has the variance d / (4 pi bandwidth²).
    most: see `find_hills`.
    """
    rise = hills.peaks - hills.peaks / hills.prominences
    real = rise >= NOISE * np.sqrt(hills.peaks / (4 * np.pi * bandwidth**2))
    ranked = np.lexsort((-hills.peaks, -hills.prominences, ~real))
    enough = int((real if most is not None else real & (hills.prominences >= PROMINENCE)).sum())
    kept = np.zeros(len(ranked), bool)
    kept[ranked[: max(1, min(enough, MOST if most is None else most))]] = True
    return kept


def _follow(hills: _Hills, kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Returns the number of the hill that each hill is merged into: (p,).

    A kept hill is not merged, so it has its own number. Any other hill is merged into its nearest kept ancestor, found
    by following `parents`. If no ancestor is kept, it is merged into its last ancestor, which has no saddle. `_join`
    then moves the points of that ancestor, because it is not kept.
    """
    target = np.arange(len(kept))
    for number in range(len(kept)):  # parents have lower numbers
        if not kept[number]:
            target[number] = target[hills.parents[number]]
    return target


def _join(found: NDArray[np.int64], kept: NDArray[np.bool_], positions: NDArray[np.float32]) -> NDArray[np.int64]:
    """Moves the points of small hills, and of hills that are not kept, to the remaining hill with the nearest centre.

    `LEAST_SHARE` and `LEAST` tell which hills are small. If no hill would remain, the largest hill remains.
    found: (n,) the number of each point's hill. kept: (p,), True for a kept hill. Returns the new number of each
    point's hill: (n,).
    """
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
    """Renumbers the clusters from 0, the largest first.

    found: (n,) the number of each point's cluster. Returns the new numbers, (n,) int32. Clusters of the same size are
    numbered in the order of their first points.
    """
    _, first, place, counts = np.unique(found, return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((first, -counts))
    number = np.empty(len(order), np.int32)
    number[order] = np.arange(len(order))
    renumbered: NDArray[np.int32] = number[place]
    return renumbered
