"""Ranking a few rows by their exact distances, measured in float64."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from simsearch.common.float16 import to_float32

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROUNDING = 1e-4
"""Relative margin for rounding in squared float32 distances; more than the rounding of a sum of 4096 terms."""


TINY = 1e-30
"""Absolute margin for rounding in sums of products that are so small that float32 rounds them to zero."""


def relative_rounding(dimension: int) -> float:
    """Returns an upper bound of the rounding error of a squared distance in float32, as a fraction of its exact value.

    The bound holds for any order in which the squares are added. dimension: the number of squares, D.
    """
    return (dimension + 8) * 2.0**-24 / (1 - (dimension + 8) * 2.0**-24)


class _Scratch(threading.local):
    """Arrays for `measured` to use again, separate for each thread: making new ones would take as long as the sums."""

    LARGEST = 1 << 18
    """Largest number of values in an array that is kept, 64 rows at D = 4096; for more, `get` returns new arrays."""

    def __init__(self) -> None:
        self._single, self._double = np.empty(0, np.float32), np.empty(0, np.float64)

    def get(self, rows: int, dimension: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Returns two arrays (rows, dimension) of any content, float32 and float64, for use until the next call."""
        size = rows * dimension
        if size > self.LARGEST:
            return np.empty((rows, dimension), np.float32), np.empty((rows, dimension), np.float64)
        if size > len(self._single):
            self._single, self._double = np.empty(size, np.float32), np.empty(size, np.float64)
        return self._single[:size].reshape(rows, dimension), self._double[:size].reshape(rows, dimension)


_scratch = _Scratch()


class Neighbours(NamedTuple):
    """The rows nearest to one query and their Euclidean distances (float64), nearest first.

    There are more than k rows if several tie for the k-th place, and fewer than k only if fewer rows are searched.
    """

    rows: NDArray[np.int64]
    distances: NDArray[np.float64]


def rank_exact(
    query: NDArray[np.float32], rows: NDArray[np.int64], features: NDArray[np.float16], k: int
) -> Neighbours:
    """Returns the k rows nearest to a query by float64 distances; more if several tie for the k-th place.

    query: (D,). rows: (n,). features: (n, D), of the rows.
    """
    near = _within_reach(query, features, min(k, len(rows)))
    return measured(query, rows[near], features[near], k)


def measured(query: NDArray[np.float32], rows: NDArray[np.int64], features: NDArray[np.float16], k: int) -> Neighbours:
    """Returns the same as `rank_exact`, but computes the distances of all rows in float64.

    `rank_exact` first compares the rows in float32, and computes in float64 only for rows that may be the nearest.
    """
    k = min(k, len(rows))
    single, difference = _scratch.get(*features.shape)
    with np.errstate(invalid="ignore"):  # damaged rows may be infinite
        difference[...] = to_float32(features, single)
        difference -= query.astype(np.float64)
        distances = np.sqrt(np.vecdot(difference, difference))  # roots of different squares may tie
    order = np.lexsort((rows, distances))
    last = int(np.searchsorted(distances[order], distances[order[k - 1]], side="right"))
    chosen = order[:last]
    return Neighbours(rows[chosen], distances[chosen])


def _within_reach(query: NDArray[np.float32], features: NDArray[np.float16], k: int) -> NDArray[np.int64]:
    """Returns the places of the (n, D) features that may be among the k nearest or tie with the k-th.

    Compares them in float32, with a margin for rounding.
    """
    if len(features) <= k + 8:
        return np.arange(len(features))
    with np.errstate(over="ignore", invalid="ignore"):
        difference = to_float32(features)
        difference -= query
        squared = np.einsum("nd,nd->n", difference, difference)
    if not np.isfinite(squared).all():  # float32 overflowed
        return np.arange(len(features))
    reach = np.float64(np.partition(squared, k - 1)[k - 1]) * (1 + 3 * ROUNDING) + TINY
    return np.flatnonzero(squared <= reach)


def merged(a: Neighbours, b: Neighbours, k: int) -> Neighbours:
    """Returns the k nearest rows of two lists together; more if several rows tie for the k-th place.

    No row may be in both lists.
    """
    rows, distances = np.concatenate([a.rows, b.rows]), np.concatenate([a.distances, b.distances])
    order = np.lexsort((rows, distances))
    last = int(np.searchsorted(distances[order], distances[order[min(k, len(order)) - 1]], side="right"))
    return Neighbours(rows[order[:last]], distances[order[:last]])
