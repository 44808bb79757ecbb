"""Buffers for float16 rows, in which FAISS measures distances without copying or converting the rows.

FAISS computes in float32, to find the few rows that may be among the nearest. The caller then measures these rows in
float64.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from simsearch.common.lazy import LazyModule
from simsearch.search.faiss_files import OneThread, faiss_header
from simsearch.search.ranking import TINY, relative_rounding

if TYPE_CHECKING:
    import faiss
    from numpy.typing import NDArray
else:
    faiss = LazyModule("faiss")

ROWS = 256
"""Number of rows in a buffer. At D = 4096, 256 float16 rows take 2 MiB, which fits in a core's cache."""


SPARE = 8
"""FAISS first lists k rows and this number more. It lists still more if other rows may be among the k nearest too."""


class Near(NamedTuple):
    """The rows of a buffer that may be among the k nearest.

    squared: (m,) their squared distances in float32, ascending.
    places: (m,) their places in the buffer.
    best: the k-th smallest squared distance in float32, among the rows in the buffer and the further rows that
    `RowBuffer.near` is given as `others`; inf if there are fewer than k distances.
    """

    squared: NDArray[np.float32]
    places: NDArray[np.int64]
    best: float


class RowBuffer:
    """Memory for up to `ROWS` rows, which FAISS searches. Only one thread may use it at a time.

    features: (ROWS, D) float16, to read rows into.
    """

    def __init__(self, dimension: int) -> None:
        header = faiss_header(dimension, ROWS)
        start = -len(header) % 64  # so that the rows are aligned
        self._memory = np.empty(start + len(header) + 2 * ROWS * dimension, np.uint8)
        self._memory[start : start + len(header)] = np.frombuffer(header, np.uint8)
        view = self._memory[start:]
        self.features: NDArray[np.float16] = view[len(header) :].view(np.float16).reshape(ROWS, dimension)
        self._index = faiss.read_index(faiss.ZeroCopyIOReader(faiss.swig_ptr(view), view.size))
        self._rounding = relative_rounding(dimension)

    def near(self, query: NDArray[np.float32], count: int, k: int, others: NDArray[np.float32] | None = None) -> Near:
        """Returns the rows of the buffer that may be among the k nearest to a query.

        Rows whose distances overflow float32 or are not numbers are left out, because FAISS does not list them.

        query: (1, D).
        count: the number of rows in the buffer, from its first place on.
        others: squared distances in float32 of further rows, outside the buffer, that may be among the k nearest too.
        """
        self._index.ntotal = count
        width = min(k + SPARE, count)
        while True:
            with OneThread():
                found, every = self._index.search(query, width)
            listed = every[0] >= 0
            squared, places = found[0][listed], every[0][listed]
            best = _smallest(squared, k, others)
            reach = within_rounding(best, self._rounding)
            if width == count or not listed.all() or squared[-1] > reach:
                break
            width = min(4 * width, count)  # more rows may be as near
        kept = squared <= reach
        return Near(squared[kept], places[kept], best)


def _smallest(squared: NDArray[np.float32], k: int, others: NDArray[np.float32] | None) -> float:
    """Returns the k-th smallest value of both arrays together; inf if they have fewer than k values.

    squared: in ascending order. others: in any order; None for no other values.
    """
    if others is not None:
        both = np.concatenate([others, squared])
        return float(np.partition(both, k - 1)[k - 1]) if len(both) >= k else np.inf
    return float(squared[k - 1]) if len(squared) >= k else np.inf


def within_rounding(best: float, rounding: float) -> float:
    """Returns the squared distance beyond which a row is certainly farther away than a row at `best`.

    `best` and the result are squared float32 distances, which have rounding errors. rounding: from `relative_rounding`.
    """
    return best * (1 + 4 * rounding) + TINY


class RowBuffers(threading.local):
    """Gives each thread a buffer for rows of D dimensions."""

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension
        self._buffer: RowBuffer | None = None

    def get(self) -> RowBuffer:
        self._buffer = self._buffer or RowBuffer(self._dimension)
        return self._buffer
