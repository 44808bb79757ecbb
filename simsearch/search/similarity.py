"""Similarities from distances: the fraction of random pairs of images that are farther apart.

It means the same for every model: two random images have 0.5 on average, and a pair with 0.99 is nearer than 99 of 100
random pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from simsearch.common.distances import squared_norms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

POINTS = 201
"""Number of quantiles."""

ENOUGH = 64
"""From this number of images, the quantiles come from the index itself instead of the model."""


def quantiles(features: NDArray[np.float16]) -> tuple[float, ...]:
    """Returns POINTS quantiles of the distances between all pairs of different (n, D) features, ascending.

    They are denser at small distances, where matches are. Empty if fewer than two features differ.
    """
    x = np.unique(features, axis=0).astype(np.float64)
    if len(x) < 2:
        return ()
    squared = squared_norms(x)
    distances = squared[:, None] + squared[None, :] - 2 * x @ x.T
    pairs = np.sqrt(np.maximum(distances[np.triu_indices(len(x), 1)], 0))
    return tuple(round(float(value), 6) for value in np.quantile(pairs, _shares(POINTS)))


def similarity(distance: float, table: Sequence[float]) -> float:
    """Returns the fraction of random pairs farther apart than `distance`, in [0, 1], by linear interpolation.

    table: from `quantiles`. If it is empty, the similarity is 1 for identical features and 0 for others.
    """
    return similarities([distance], table)[0]


def similarities(distances: Sequence[float], table: Sequence[float]) -> list[float]:
    """Returns the `similarity` of each distance."""
    if not table:
        return [1.0 if distance == 0 else 0.0 for distance in distances]
    # From distance 0 to the nearest random pair the fraction falls from 1 to 1 - 1e-6.
    points = np.zeros(len(table) + 1)
    points[1:] = table
    shares = np.ones(len(table) + 1)
    shares[1:] -= np.maximum(_shares(len(table)), 1e-6)
    found = np.interp(distances, points, shares)
    return [
        1.0 if distance <= 0 else 0.0 if distance >= table[-1] else share
        for distance, share in zip(distances, found.tolist(), strict=True)
    ]


def median(table: Sequence[float]) -> float:
    """Returns the median distance of random pairs; 0 if the table is empty."""
    return float(np.interp(0.5, _shares(len(table)), table)) if table else 0.0


def _shares(points: int) -> NDArray[np.float64]:
    return np.linspace(0.0, 1.0, points) ** 2
