"""Squared lengths of vectors, from which distances are computed: |a - b|^2 = |a|^2 - 2 a.b + |b|^2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray


def squared_norms(rows: NDArray[Any], dtype: DTypeLike | None = None) -> NDArray[Any]:
    """Returns the squared length of each row of an (n, D) array, as an array (n,).

    dtype: the type of the sums and of the result; None for the type of `rows`.
    """
    kind: Any = dtype
    found: NDArray[Any] = np.einsum("nd,nd->n", rows, rows, dtype=kind)
    return found
