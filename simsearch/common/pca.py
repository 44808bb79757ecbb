"""Principal components by a randomized method: seconds for 4096 dimensions; an exact solver takes minutes.

Halko, Martinsson, Tropp: "Finding structure with randomness", SIAM Review 2011, algorithms 4.4 and 5.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common.float16 import to_float32

if TYPE_CHECKING:
    from numpy.typing import NDArray

OVERSAMPLING, POWER_ITERATIONS = 16, 2


@dataclass(frozen=True)
class Projection:
    """A projection of vectors from D to d dimensions: x becomes (x - mean) @ axes.

    mean: (D,) float32. axes: (D, d) float32, with orthonormal columns, so that no distance between two vectors
    becomes longer.
    """

    mean: NDArray[np.float32]
    axes: NDArray[np.float32]

    def __call__(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """Returns the projections of (n, D) features: (n, d) float32."""
        x: Any = to_float32(features)
        x -= self.mean
        projected: NDArray[np.float32] = x @ self.axes
        return projected

    def first(self, dimensions: int) -> Projection:
        """Returns the projection onto the first `dimensions` axes, with each axis contiguous in memory.

        A single vector is projected faster than if each row of `axes` were contiguous.
        """
        return Projection(self.mean, np.asfortranarray(self.axes[:, :dimensions]))


def fit_pca(
    sample: NDArray[np.floating], dimensions: int, seed: int = 0, iterations: int = POWER_ITERATIONS
) -> Projection:
    """Returns the projection to the first `dimensions` principal components of an (n, D) sample.

    The projection has fewer dimensions if n or D is less than `dimensions`.
    seed: the seed of the random numbers. iterations: number of power iterations; with fewer of them, the last
    components are less accurate.
    """
    x = to_float32(sample)
    mean: NDArray[np.float32] = x.mean(0, dtype=np.float64).astype(np.float32)
    x -= mean
    d = min(dimensions, *x.shape)
    width = min(d + OVERSAMPLING, *x.shape)
    random = np.random.default_rng(seed)
    y: NDArray[Any] = x @ random.standard_normal((x.shape[1], width), np.float32)
    for _ in range(iterations):
        y = x @ (x.T @ np.linalg.qr(y)[0])
    basis = np.linalg.qr(y)[0]  # (n, width)
    part: NDArray[Any] = (basis.T @ x).astype(np.float64)  # (width, D)
    vectors = np.linalg.eigh(part @ part.T)[1][:, ::-1]  # faster than a singular value decomposition of `part`
    # Orthonormalized in float64: an axis longer than 1 would make distances longer.
    exact = np.linalg.qr(part.T @ vectors[:, :d])[0]
    return Projection(mean, np.ascontiguousarray(exact, np.float32))
