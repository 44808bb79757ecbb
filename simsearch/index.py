"""Exact Euclidean nearest neighbours over the feature shards.

FAISS scans the float16 rows where they lie: the shard is mapped copy-on-write, FAISS's own header for a float16
scalar-quantizer index is put into the mapping just before the first row, and `faiss.read_index` with a
`ZeroCopyIOReader` takes it from there. Nothing is copied at opening, and nothing reaches the file.

FAISS computes in float32. Its best candidates are measured again in float64, which settles their order; the search
is repeated with more candidates while rounding could still hide a better one.

Letters: nq queries, k neighbours, D dimension, n rows.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from simsearch.errors import IndexDamagedError
from simsearch.shards import PREAMBLE, Shards

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIRECT = 2048
"""Up to this many permitted rows are fetched and measured one by one instead of scanning all."""

ROUNDING = 1e-4
"""Relative margin on squared float32 distances, above the rounding of a sum of 4096 terms."""


class Neighbours(NamedTuple):
    """The rows nearest to one query and their distances (float64, not squared), ascending.

    At least k where there are as many, and more where several rows tie for the k-th place.
    """

    rows: NDArray[np.int64]
    distances: NDArray[np.float64]


class _Part(NamedTuple):
    """Rows first to last - 1 as a FAISS index; `mapping` is what its codes lie in."""

    first: int
    last: int
    index: Any
    mapping: NDArray[np.uint8]


class FlatIndex:
    """The first `rows` rows of some shards, searchable. Safe for many threads; later appends do not disturb it."""

    def __init__(self, shards: Shards, rows: int) -> None:
        self.shards, self.rows = shards, rows
        self._parts: list[_Part] | None = None
        self._lock = threading.Lock()

    def search(self, queries: NDArray[np.float32], k: int, permitted: NDArray[np.int64] | None) -> list[Neighbours]:
        """The k nearest rows to each of (nq, D) queries.

        permitted: ascending rows that may be found; None for all.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        available = self.rows if permitted is None else len(permitted)
        k = min(k, available)
        if k == 0 or not len(queries):
            return [Neighbours(np.zeros(0, np.int64), np.zeros(0))] * len(queries)
        if permitted is not None and not 0 <= permitted[0] <= permitted[-1] < self.rows:
            raise IndexDamagedError(f"items own rows {permitted[0]} to {permitted[-1]}, but there are {self.rows}")
        if permitted is not None and len(permitted) <= DIRECT:
            features = self.shards.read(permitted)
            return [_nearest(query, permitted, features, k) for query in queries]
        found: list[Neighbours | None] = [None] * len(queries)
        pending = list(range(len(queries)))
        width = min(available, k + 16)
        while pending:
            distances, rows = self._scan(queries[pending], width, permitted)
            rest = []
            for place, number in enumerate(pending):
                if not np.isfinite(distances[place]).all():
                    found[number] = self._measure(queries[number], k, permitted)
                    continue
                near = rows[place][rows[place] >= 0]
                result = _nearest(queries[number], near, self.shards.read(near), k)
                limit = distances[place, -1]
                if width < available and result.distances[k - 1] ** 2 * (1 + ROUNDING) >= limit:
                    rest.append(number)  # a row just outside might belong inside
                else:
                    found[number] = result
            pending, width = rest, min(available, 4 * width)
        return [result for result in found if result is not None]

    def _measure(self, query: NDArray[np.float32], k: int, permitted: NDArray[np.int64] | None) -> Neighbours:
        """The answer without FAISS, for a query so far away that float32 cannot hold its squared distances."""
        rows = np.arange(self.rows) if permitted is None else permitted
        best = Neighbours(rows[:0], np.zeros(0))
        for start in range(0, len(rows), DIRECT):
            part = np.concatenate([best.rows, rows[start : start + DIRECT]])
            best = _nearest(query, part, self.shards.read(part), k)
        return best

    def _scan(
        self, queries: NDArray[np.float32], width: int, permitted: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """FAISS's nearest rows of each query: squared distances and rows, (nq, width), -1 where there are none."""
        parts = self._open()
        mask = None
        if permitted is not None:
            mask = np.zeros(self.rows, bool)
            mask[permitted] = True

        def one(part: _Part) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
            return _search_part(part, queries, width, None if mask is None else mask[part.first : part.last])

        if len(queries) == 1 and len(parts) > 1:  # FAISS gives one query one thread
            with ThreadPoolExecutor(min(len(parts), os.cpu_count() or 1)) as pool:
                results = list(pool.map(one, parts))
        else:
            results = [one(part) for part in parts]
        distances = np.concatenate([result[0] for result in results], axis=1)
        rows = np.concatenate([result[1] for result in results], axis=1)
        if len(parts) > 1:
            best = np.argsort(distances, axis=1, kind="stable")[:, :width]
            distances, rows = np.take_along_axis(distances, best, 1), np.take_along_axis(rows, best, 1)
        return distances, rows

    def _open(self) -> list[_Part]:
        """All shards as FAISS indexes, opened at the first search."""
        with self._lock:
            if self._parts is None:
                self._parts = [self._open_shard(n, stop) for n, _, stop in self.shards.spans(0, self.rows)]
            return self._parts

    def _open_shard(self, shard: int, rows: int) -> _Part:
        import faiss

        first = shard * self.shards.rows_per_shard
        length = PREAMBLE + rows * self.shards.row_bytes
        path = self.shards.path(shard)
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise IndexDamagedError(f"{path} cannot be mapped for {rows:,} rows: {error}") from error
        header = _faiss_header(self.shards.dimension, rows)
        start = PREAMBLE - len(header)
        mapped[start:PREAMBLE] = header
        view = np.frombuffer(mapped, np.uint8)[start:]
        reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(view), view.size)
        index = faiss.read_index(reader)
        if (index.ntotal, index.d, index.codes.size()) != (rows, self.shards.dimension, rows * self.shards.row_bytes):
            raise IndexDamagedError(f"{path}: FAISS reads {index.ntotal} x {index.d} where {rows} rows are expected")
        return _Part(first, first + rows, index, view)


def _faiss_header(dimension: int, rows: int) -> bytes:
    """The bytes that precede the codes in a FAISS file of `rows` float16 vectors (see faiss/impl/index_write.cpp)."""
    import faiss

    empty = faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_L2)
    header = bytearray(faiss.serialize_index(empty).tobytes())
    struct.pack_into("<q", header, 8, rows)  # ntotal, after the four-character code and the dimension
    struct.pack_into("<Q", header, len(header) - 8, rows * 2 * dimension)  # the length of the codes
    return bytes(header)


def _search_part(
    part: _Part, queries: NDArray[np.float32], width: int, mask: NDArray[np.bool_] | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    import faiss

    width = min(width, part.last - part.first)
    if mask is None:
        distances, rows = part.index.search(queries, width)
    else:
        bits = np.packbits(mask, bitorder="little")
        parameters = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))
        distances, rows = part.index.search(queries, width, params=parameters)
    return np.where(rows < 0, np.inf, distances).astype(np.float32), np.where(rows < 0, -1, rows + part.first)


def _nearest(query: NDArray[np.float32], rows: NDArray[np.int64], features: NDArray[np.float16], k: int) -> Neighbours:
    """The k nearest of the given rows by float64 arithmetic, and those that tie with the last."""
    with np.errstate(invalid="ignore"):  # damaged rows may be infinite
        difference = features.astype(np.float64)
        difference -= query.astype(np.float64)
        squared = np.einsum("nd,nd->n", difference, difference)
    order = np.lexsort((rows, squared))
    k = min(k, len(order))
    last = int(np.searchsorted(squared[order], squared[order[k - 1]], side="right"))
    chosen = order[:last]
    return Neighbours(rows[chosen], np.sqrt(squared[chosen]))
