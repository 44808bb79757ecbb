"""Exact Euclidean nearest neighbours over the feature shards.

FAISS scans the float16 rows where they lie: the shard is mapped copy-on-write, FAISS's own header for a float16
scalar-quantizer index is put into the mapping just before the first row, and `faiss.read_index` with a
`ZeroCopyIOReader` takes it from there. Nothing is copied at opening, and nothing reaches the file.

One query is shared among the cores range by range, so that it is as fast as the memory. Many at once are a matrix
product over blocks of rows decoded to float32. Either way the best candidates of float32 are measured again in
float64, which settles their order; the search is repeated with more of them while rounding could hide a better one.

Letters: nq queries, k neighbours, D dimension, n rows.
"""

from __future__ import annotations

import functools
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

BATCH = 8
"""From this many queries on, a matrix product is faster than a scan for each."""

BLOCK = 2048
"""Rows decoded to float32 at once: 32 MiB at D = 4096."""

PIECES = 4
"""Ranges for each core that one query is split into, so that none waits long for the last."""


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

    @property
    def features(self) -> NDArray[np.float16]:
        """The rows, where they are mapped: (last - first, D)."""
        codes = self.mapping[-(self.last - self.first) * 2 * self.index.d :]
        return codes.view("<f2").reshape(-1, self.index.d)


class _Scanned(NamedTuple):
    """What float32 finds nearest: squared distances, ascending, and rows, (nq, width); -1 where there are none.

    slack: (nq,) by how much rounding may have moved a squared distance, beyond the relative ROUNDING.
    """

    distances: NDArray[np.float32]
    rows: NDArray[np.int64]
    slack: NDArray[np.float64]


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
            features = self.read(permitted)
            return [nearest(query, permitted, features, k) for query in queries]
        found: list[Neighbours | None] = [None] * len(queries)
        pending = list(range(len(queries)))
        width = min(available, k + 16)
        scan = self._multiply if len(queries) >= BATCH else self._scan
        while pending:
            scanned = scan(queries[pending], width, permitted)
            rest = []
            for place, number in enumerate(pending):
                if not np.isfinite(scanned.distances[place]).all():
                    found[number] = self._measure(queries[number], k, permitted)
                    continue
                near = scanned.rows[place][scanned.rows[place] >= 0]
                result = self.rank(queries[number], near, k)
                limit = scanned.distances[place, -1] - scanned.slack[place]
                if width < available and result.distances[k - 1] ** 2 * (1 + ROUNDING) >= limit:
                    rest.append(number)  # a row just outside might belong inside
                else:
                    found[number] = result
            pending, width, scan = rest, min(available, 4 * width), self._scan
        return [result for result in found if result is not None]

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """The given rows in that order, from the mapped files: (n, D) float16."""
        parts = self._open()
        out = np.empty((len(rows), self.shards.dimension), np.float16)
        shards, within = np.divmod(rows, self.shards.rows_per_shard)
        for shard in np.unique(shards):
            chosen = np.flatnonzero(shards == shard)
            out[chosen] = parts[shard].features[within[chosen]]
        return out

    def rank(self, query: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> Neighbours:
        """The k nearest of the given rows, measured in float64, and those that tie with the last."""
        return nearest(query, rows, self.read(rows), k)

    def _measure(self, query: NDArray[np.float32], k: int, permitted: NDArray[np.int64] | None) -> Neighbours:
        """The answer without FAISS, for a query so far away that float32 cannot hold its squared distances."""
        rows = np.arange(self.rows) if permitted is None else permitted
        best = Neighbours(rows[:0], np.zeros(0))
        for start in range(0, len(rows), DIRECT):
            best = self.rank(query, np.concatenate([best.rows, rows[start : start + DIRECT]]), k)
        return best

    def _scan(self, queries: NDArray[np.float32], width: int, permitted: NDArray[np.int64] | None) -> _Scanned:
        """A scan by FAISS, the rows shared among the cores."""
        parts = self._open()
        mask = self._mask(permitted)
        cores = os.cpu_count() or 1
        pieces = -(-PIECES * cores // len(parts)) if len(queries) == 1 else 1
        ranges = []
        for part in parts:
            if mask is None or mask[part.first : part.last].any():
                step = max(256, -(-(part.last - part.first) // pieces))
                ranges += [(part, first, min(first + step, part.last)) for first in range(part.first, part.last, step)]

        def one(span: tuple[_Part, int, int]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
            return _search_part(*span, queries, width, mask)

        alone = len(queries) == 1 and len(ranges) > 1  # FAISS gives one query one thread
        results = list(_pool().map(one, ranges)) if alone else [one(span) for span in ranges]
        distances, rows = _best(results, width)
        return _Scanned(distances, rows, np.zeros(len(queries)))

    def _multiply(self, queries: NDArray[np.float32], width: int, permitted: NDArray[np.int64] | None) -> _Scanned:
        """Squared distances as |q|^2 - 2 q.x + |x|^2, whose rounding grows with the lengths of q and x."""
        mask = self._mask(permitted)
        lengths = np.einsum("nd,nd->n", queries, queries)
        block = np.empty((BLOCK, self.shards.dimension), np.float32)
        best: list[tuple[NDArray[np.float32], NDArray[np.int64]]] = []
        largest = 0.0
        for part in self._open():
            for first in range(part.first, part.last, BLOCK):
                last = min(first + BLOCK, part.last)
                allowed = None if mask is None else mask[first:last]
                if allowed is not None and not allowed.any():
                    continue
                x = block[: last - first]
                codes = part.features[first - part.first : last - part.first].view(np.uint8)
                part.index.sa_decode(codes, x)
                with np.errstate(all="ignore"):  # what float32 cannot hold is measured otherwise
                    own = np.einsum("nd,nd->n", x, x)
                    squared = queries @ x.T  # (nq, n)
                    squared *= -2
                    squared += lengths[:, None]
                    squared += own
                np.nan_to_num(squared, copy=False, nan=np.inf, posinf=np.inf, neginf=np.inf)
                if allowed is not None:
                    squared[:, ~allowed] = np.inf
                    own = own[allowed]
                largest = max(largest, float(own.max()))
                rows = np.broadcast_to(np.arange(first, last), squared.shape)
                best = [_best([*best, (squared, rows)], width)]
        distances, rows = best[0]
        with np.errstate(over="ignore"):
            slack = ROUNDING / 4 * (np.sqrt(lengths.astype(np.float64)) + np.sqrt(largest)) ** 2
        return _Scanned(distances, np.where(np.isfinite(distances), rows, -1), slack)

    def _mask(self, permitted: NDArray[np.int64] | None) -> NDArray[np.bool_] | None:
        if permitted is None:
            return None
        mask = np.zeros(self.rows, bool)
        mask[permitted] = True
        return mask

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
    part: _Part, first: int, last: int, queries: NDArray[np.float32], width: int, mask: NDArray[np.bool_] | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """FAISS's nearest of the rows first to last - 1, which lie in `part`; mask: over all rows, None for all."""
    import faiss

    width = min(width, last - first)
    start, stop = first - part.first, last - part.first
    selector: Any = None
    if mask is not None:
        allowed = np.zeros(part.last - part.first, bool)
        allowed[start:stop] = mask[first:last]
        bits = np.packbits(allowed, bitorder="little")
        selector = faiss.IDSelectorBitmap(bits)
    elif last - first < part.last - part.first:
        selector = faiss.IDSelectorRange(start, stop)
    parameters = None if selector is None else faiss.SearchParameters(sel=selector)
    distances, rows = part.index.search(queries, width, params=parameters)
    return np.where(rows < 0, np.inf, distances).astype(np.float32), np.where(rows < 0, -1, rows + part.first)


def _best(
    results: list[tuple[NDArray[np.float32], NDArray[np.int64]]], width: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The `width` smallest of several (distances, rows), (nq, any) each, ascending."""
    distances = np.concatenate([result[0] for result in results], axis=1)
    rows = np.concatenate([result[1] for result in results], axis=1)
    if width < distances.shape[1]:
        chosen = np.argpartition(distances, width - 1, axis=1)[:, :width]
        distances, rows = np.take_along_axis(distances, chosen, 1), np.take_along_axis(rows, chosen, 1)
    order = np.argsort(distances, axis=1, kind="stable")
    return np.take_along_axis(distances, order, 1), np.take_along_axis(rows, order, 1)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """The threads that share one query."""
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="scan")


def nearest(query: NDArray[np.float32], rows: NDArray[np.int64], features: NDArray[np.float16], k: int) -> Neighbours:
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
