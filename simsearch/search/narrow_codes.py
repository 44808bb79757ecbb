"""Compares a query's narrow code with the narrow codes of all rows.

A narrow code is a short form of the features of a row (see `sketch`). `NarrowCodes.nearest` lists the rows with the
nearest codes. `NarrowCodes.table` computes the distances to the codes of all rows. Both can be limited to some rows,
the permitted rows.

The rows are divided into c stripes. The first stripe has the rows 0, c, 2c and so on, the second the rows 1, c + 1,
2c + 1 and so on.

All squared distances of narrow codes are whole numbers below 2^24, which float32 holds exactly.

Shape letters: nq queries, n rows, w bytes of a code.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from simsearch.common.lazy import LazyModule
from simsearch.search.bounds import FARTHEST
from simsearch.search.faiss_files import OneThread, pool

if TYPE_CHECKING:
    import faiss
    from numpy.typing import NDArray
else:
    faiss = LazyModule("faiss")

EXCLUDED = np.float32(1e30)
"""The squared distance that `table` has for a row that is not permitted."""

BLOCK = 16_384
"""Number of rows whose codes are compared at once."""

STRIPE = 32_768
"""If there are more stripes than threads, a stripe has at least this number of rows, and at most twice this number."""


class Listed(NamedTuple):
    """The permitted rows of one stripe whose codes are nearest to a query's code.

    rows: (m,).
    near: (m,) the squared distances between their codes and the query's code, ascending.
    edge: a lower bound of these squared distances for the other permitted rows of the stripe; inf if there are no
    others.
    """

    rows: NDArray[np.int64]
    near: NDArray[np.float32]
    edge: float


class NarrowCodes:
    """The (n, w) uint8 codes of n rows. Safe for many threads.

    There is at least one stripe for each thread. A large number of rows is divided into more stripes, because FAISS is
    slow to list many rows of a long stripe. All stripes have about the same number of rows near a query, because a
    stripe has every c-th row.
    fewest: the smallest number of rows for each thread. With few rows, fewer threads are used than there are cores.
    threads: the number of threads that can share the search for one query.
    """

    def __init__(self, codes: NDArray[np.uint8], fewest: int) -> None:
        self.rows = len(codes)
        self.threads = min(os.cpu_count() or 1, max(1, self.rows // fewest))
        self.stripes = max(self.threads, self.rows // STRIPE)
        self._indexes = [_faiss_index(codes[first :: self.stripes]) for first in range(self.stripes)]
        self._lengths: list[NDArray[np.float32]] | None = None
        self._masked: tuple[NDArray[np.int64] | None, list[NDArray[np.bool_]]] = (None, [])
        self._lock = threading.Lock()

    def masks(self, permitted: NDArray[np.int64] | None) -> list[NDArray[np.bool_]]:
        """Returns a mask for each stripe, True for the permitted rows; an empty list if all rows are permitted."""
        if permitted is None:
            return []
        with self._lock:
            if self._masked[0] is not permitted:
                mask = np.zeros(self.rows, bool)
                mask[permitted] = True
                self._masked = (
                    permitted,
                    [np.ascontiguousarray(mask[first :: self.stripes]) for first in range(self.stripes)],
                )
            return self._masked[1]

    def nearest(
        self,
        code: NDArray[np.uint8],
        wanted: int,
        masks: list[NDArray[np.bool_]],
        threads: int,
        stripes: Sequence[int] | None = None,
    ) -> list[Listed]:
        """Returns, for each stripe, the `wanted` rows whose codes are nearest to a query's code.

        code: (w,) the query's code.
        masks: from the method `masks`.
        threads: the number of threads to use.
        stripes: the numbers of the stripes to search; None for all.
        """
        vector, numbers = code.astype(np.float32)[None], range(self.stripes) if stripes is None else stripes

        def one(stripe: int) -> Listed:
            selector = faiss.IDSelectorBitmap(np.packbits(masks[stripe], bitorder="little")) if masks else None
            parameters = None if selector is None else faiss.SearchParameters(sel=selector)
            index = self._indexes[stripe]
            distances, places = index.search(vector, min(wanted, index.ntotal), params=parameters)
            found = places[0] >= 0
            whole = not found.all() or wanted >= index.ntotal
            near = distances[0][found]
            return Listed(places[0][found] * self.stripes + stripe, near, np.inf if whole else float(near[-1]))

        def some(first: int) -> list[Listed]:
            with OneThread():
                return [one(stripe) for stripe in numbers[first::threads]]

        others = [pool().submit(some, first) for first in range(1, threads)]
        parts: list[Any] = [None] * len(numbers)
        parts[::threads] = some(0)
        for first, other in enumerate(others, 1):
            parts[first::threads] = other.result()
        return parts

    def table(self, codes: NDArray[np.uint8], masks: list[NDArray[np.bool_]]) -> NDArray[np.float32]:
        """Returns the squared distances between (nq, w) codes and the codes of all rows, (nq, n).

        The columns are ordered by stripe; `rows_of` converts them to rows. Rows that are not permitted get EXCLUDED.
        masks: from the method `masks`.
        """
        views = [_codes(index) for index in self._indexes]
        if self._lengths is None:
            self._lengths = [np.einsum("nd,nd->n", v, v, dtype=np.int32).astype(np.float32) for v in views]
        vectors = codes.astype(np.float32)
        own, doubled = np.einsum("nd,nd->n", vectors, vectors)[:, None], -2 * vectors
        found = np.empty((len(codes), self.rows), np.float32)
        column = 0
        for number, view in enumerate(views):
            for start in range(0, len(view), BLOCK):
                part = view[start : start + BLOCK].astype(np.float32)
                out = found[:, column : column + len(part)]
                out[...] = doubled @ part.T
                out += self._lengths[number][start : start + BLOCK]
                if masks:
                    out[:, ~masks[number][start : start + BLOCK]] = EXCLUDED
                column += len(part)
        found += own
        return found

    def rows_of(self, columns: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the row that each of the given columns of `table` stands for."""
        edges = np.cumsum([0] + [index.ntotal for index in self._indexes])
        stripes = np.searchsorted(edges, columns, side="right") - 1
        rows: NDArray[np.int64] = (columns - edges[stripes]) * self.stripes + stripes
        return rows


def expected_rows(near: NDArray[np.float32], limit: float) -> int:
    """Estimates the number of rows within the squared distance `limit`, and adds a quarter of this number as a margin.

    Assumes that the number of rows within a distance grows like a power of it. Returns 0 if no estimate is possible.
    near: (n,) the squared distances of the nearest rows.
    """
    middle, edge = float(np.partition(near, len(near) // 2)[len(near) // 2]), float(near.max())
    if not 0 < middle < edge < limit < FARTHEST:
        return 0
    power = math.log(2) / math.log(edge / middle)
    return int(min(1.25 * len(near) * math.exp(min(power * math.log(limit / edge), 20)), FARTHEST))


def _faiss_index(codes: NDArray[np.uint8]) -> Any:
    """Returns a FAISS index over (n, w) codes. Its distances are whole numbers below 2^24, without rounding."""
    index = faiss.IndexScalarQuantizer(codes.shape[1], faiss.ScalarQuantizer.QT_8bit_direct)
    faiss.copy_array_to_vector(np.ascontiguousarray(codes).reshape(-1), index.codes)
    index.ntotal = len(codes)
    return index


def _codes(index: Any) -> NDArray[np.uint8]:
    """Returns a view of the (n, w) codes in the memory of a FAISS index, without a copy."""
    view: NDArray[np.uint8] = faiss.rev_swig_ptr(index.codes.data(), index.ntotal * index.d)
    return view.reshape(index.ntotal, index.d)
