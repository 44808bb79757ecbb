"""Generated pictures, and a measure, for comparing two ways of computing the same features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def trial_pixels(side: int) -> NDArray[np.uint8]:
    """Returns seven generated pictures: (7, side, side, 3) uint8.

    The first is grey. The others consist of squares in random colours, whose size decreases from picture to picture.
    """
    random = np.random.default_rng(0)
    images = [np.full((side, side, 3), 128, np.uint8)]
    for cells in (1, 2, 4, 8, 16, side):
        drawn, size = random.integers(0, 256, (cells, cells, 3), np.uint8), -(-side // cells)
        images.append(drawn.repeat(size, 0).repeat(size, 1)[:side, :side])
    return np.stack(images)


def lowest_cosine(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Compares row 0 of `first` with row 0 of `second`, row 1 with row 1, and so on; returns the lowest cosine.

    Rows that are zero in both arrays are left out. Returns 0 if no row is left, if a row is zero in one array only, or
    if a value is NaN or infinite.
    first, second: (n, D).
    """
    a, b = first.astype(np.float64), second.astype(np.float64)
    nonzero = a.any(1) | b.any(1)  # a grey picture may give zeros in both ways
    a, b = a[nonzero], b[nonzero]
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    if not (np.isfinite(a).all() and np.isfinite(b).all() and (lengths > 0).all() and len(a)):
        return 0.0
    return float((np.einsum("nd,nd->n", a, b) / lengths).min())
