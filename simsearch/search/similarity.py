"""From distances to similarities: how unusual is it for two images to be as near as this?

The similarity of a match is the share of random pairs of images that are farther apart. It needs no scale of its own
and means the same for every model: 0.5 is what two random images have, 0.99 is nearer than 99 of 100 random pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

POINTS = 201
"""Quantiles kept."""

ENOUGH = 64
"""From this many images on, an index's own pairs are used instead of the model's."""


def quantiles(features: NDArray[np.float16]) -> tuple[float, ...]:
    """Quantiles of the distances between all pairs of different (n, D) features, ascending; empty for n < 2.

    The lowest ones, where matches lie, are spaced more closely than the others.
    """
    x = np.unique(features, axis=0).astype(np.float64)
    if len(x) < 2:
        return ()
    squared = np.einsum("nd,nd->n", x, x)
    distances = squared[:, None] + squared[None, :] - 2 * x @ x.T
    pairs = np.sqrt(np.maximum(distances[np.triu_indices(len(x), 1)], 0))
    return tuple(round(float(value), 6) for value in np.quantile(pairs, _shares(POINTS)))


def similarity(distance: float, table: Sequence[float]) -> float:
    """The share of random pairs farther apart than `distance`, in [0, 1], by linear interpolation.

    Identical features have similarity 1; without a table nothing else can be said, and the rest is 0.
    """
    return similarities([distance], table)[0]


def similarities(distances: Sequence[float], table: Sequence[float]) -> list[float]:
    """`similarity` of each distance."""
    if not table:
        return [1.0 if distance == 0 else 0.0 for distance in distances]
    # Below the nearest random pair the share falls from 1 to what one pair in the sample amounts to.
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
    """The median distance of random pairs; 0 without a table."""
    return float(np.interp(0.5, _shares(len(table)), table)) if table else 0.0


def _shares(points: int) -> NDArray[np.float64]:
    return np.linspace(0.0, 1.0, points) ** 2
