"""Finds the exact Euclidean nearest neighbours among the rows of the feature files.

With a sketch of the rows (`simsearch.search.sketch`), few rows are read: its short codes prove that the other rows
cannot be among the nearest. All rows are scanned if there is no sketch, or for a query that the sketch cannot answer.
The result is the same in both cases. There are three kinds of scan:

- For fewer than BATCH queries, FAISS scans memory-mapped files. The memory bandwidth limits the speed.
- For BATCH queries or more, the scan is a matrix product over blocks of rows that are decoded to float32.
- Rows in a GPU's memory are scanned there (`simsearch.search.gpu`).

A scan computes in float32 and only finds candidates, whose distances are computed again in float64. It is repeated with
more candidates if rounding could hide a nearer row. Only the scan by FAISS maps files into memory; everything else
reads rows from the files (`simsearch.storage.random_reader`).

Shape letters: nq queries, k neighbours, D dimension, n rows.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from simsearch.common.float16 import to_float32
from simsearch.common.lazy import LazyModule
from simsearch.search.faiss_files import MappedShard, open_shard, pool, search_part
from simsearch.search.ranking import ROUNDING, Neighbours, measured, merged, rank_exact
from simsearch.search.row_buffer import ROWS, SPARE, RowBuffers
from simsearch.storage.feature_files import FeatureFiles, no_such_row
from simsearch.storage.random_reader import RandomReader

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.search import gpu
    from simsearch.search.sketch import Sketch
else:
    gpu = LazyModule("simsearch.search.gpu")

DIRECT = 2048
"""If at most this number of rows is permitted, they are all read and measured, without a scan."""

LONGEST = 1e37
"""If the squared lengths of two vectors are below this, their squared distance does not overflow in float32."""

BATCH = 24
"""From this number of queries on, one matrix product is faster than a scan by FAISS."""

FIRST = 4096
"""Up to this number of rows, the first search is a matrix product too, since importing FAISS would take longer."""

BLOCK = 2048
"""Rows decoded to float32 at once: 32 MiB at D = 4096."""

STEP = 256
"""Rows that a core reads, decodes and measures together, so that they stay in its cache."""

PIECES = 4
"""For one query, the rows are split into this number of ranges per core, so that no core waits long for the others."""


class _Scanned(NamedTuple):
    """The rows nearest to each query by float32 distances, nearest first.

    distances: (nq, width) squared distances.
    rows: (nq, width) the rows; -1 where there are fewer than width.
    slack: (nq,) the largest rounding error of the squared distances, in addition to the relative error ROUNDING.
    """

    distances: NDArray[np.float32]
    rows: NDArray[np.int64]
    slack: NDArray[np.float64]


class FlatIndex:
    """Exact search over the first `rows` rows of the feature files. Safe for many threads and while rows are appended.

    devices: takes a number of rows and returns the names of GPUs that can hold them, if any; None to use only the CPU.
    before: an earlier index over the first of these rows, whose GPU memory is reused.
    sketch: returns a sketch of the first rows (not necessarily of all), or None if there is none.
    """

    def __init__(
        self,
        shards: FeatureFiles,
        rows: int,
        devices: Callable[[int], Sequence[str]] | None = None,
        before: FlatIndex | None = None,
        sketch: Callable[[], Sketch | None] = lambda: None,
    ) -> None:
        self.shards, self.rows, self._sketch = shards, rows, sketch
        self._devices = devices
        self._before = before._resident if before is not None and before.shards is shards else None
        self._resident: gpu.GpuIndex | None = None
        self._searched = self._scanned = False
        self._parts: list[MappedShard] | None = None
        self._buffers = RowBuffers(shards.dimension)
        self._files: RandomReader | None = None
        self._lock = threading.Lock()

    def search(self, queries: NDArray[np.float32], k: int, permitted: NDArray[np.int64] | None) -> list[Neighbours]:
        """Returns the k permitted rows nearest to each of (nq, D) queries.

        permitted: the rows that may be returned, ascending; None for all.
        Raises IndexDamagedError if a permitted row does not exist.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        available = self.rows if permitted is None else len(permitted)
        k = min(k, available)
        if k == 0 or not len(queries):
            return [Neighbours(np.zeros(0, np.int64), np.zeros(0))] * len(queries)
        if permitted is not None and not 0 <= permitted[0] <= permitted[-1] < self.rows:
            raise no_such_row(f"items own rows {permitted[0]} to {permitted[-1]}", self.rows)
        sketch = self._sketch() if self._devices is None else None
        if sketch is None or sketch.rows > self.rows:
            return self.scan(queries, k, permitted)
        known, fresh = _split(permitted, sketch.rows, self.rows)
        if not sketch.helps(k, sketch.rows if known is None else len(known)):
            return self.scan(queries, k, permitted)
        found = sketch.search(queries, k, known, self.read)
        if len(fresh):
            newer = self.scan(queries, min(k, len(fresh)), fresh)
            found = [None if a is None else merged(a, b, k) for a, b in zip(found, newer, strict=True)]
        rest = [number for number, result in enumerate(found) if result is None]
        scanned = iter(self.scan(queries[rest], k, permitted) if rest else ())
        return [next(scanned) if result is None else result for result in found]

    @property
    def proved(self) -> bool:
        """True if searches can use a sketch, which proves that most rows are not among the nearest."""
        return self._devices is None and self._sketch() is not None

    def scan(self, queries: NDArray[np.float32], k: int, permitted: NDArray[np.int64] | None) -> list[Neighbours]:
        """Returns the same neighbours as `search`, without the sketch. k: from 1 to the number of permitted rows."""
        available = self.rows if permitted is None else len(permitted)
        if permitted is not None and len(permitted) <= DIRECT:
            features = self.read(permitted)
            return [rank_exact(query, permitted, features, k) for query in queries]
        found: list[Neighbours | None] = [None] * len(queries)
        pending = list(range(len(queries)))
        width = min(available, k + 16)
        alone = available <= FIRST and not self._scanned and "faiss" not in sys.modules
        self._scanned = True
        scan = self._multiply if alone or len(queries) >= BATCH else self._scan
        if self._on_devices(len(queries)):
            scan = self._scan_on_gpu
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
                    rest.append(number)  # rounding may have hidden a nearer row: repeat
                else:
                    found[number] = result
            pending, width, scan = rest, min(available, 4 * width), self._scan
        return [result for result in found if result is not None]

    def read(self, rows: NDArray[np.int64], out: NDArray[np.float16] | None = None) -> NDArray[np.float16]:
        """Reads rows of features in the given order: (n, D) float16. out: an array to read into, if given."""
        with self._lock:
            if self._files is None:
                self._files = RandomReader(self.shards, self.rows)
        return self._files.read(rows, out)

    def rank(self, query: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> Neighbours:
        """Returns the k nearest of the given rows, measured in float64; more if several tie for the k-th place."""
        if len(rows) > ROWS or "faiss" not in sys.modules:  # importing FAISS takes longer than ranking
            return rank_exact(query, rows, self.read(rows), k)
        buffer = self._buffers.get()
        features = self.read(rows, buffer.features[: len(rows)])
        near = buffer.near(query[None], len(rows), k) if len(rows) > k + SPARE else None
        if near is None or len(near.places) < k or near.best > LONGEST:  # or float32 overflowed
            return measured(query, rows, features, k)
        return measured(query, rows[near.places], features[near.places], k)

    def _measure(self, query: NDArray[np.float32], k: int, permitted: NDArray[np.int64] | None) -> Neighbours:
        """Searches in float64 only, for a query whose squared distances float32 cannot hold."""
        rows = np.arange(self.rows) if permitted is None else permitted
        best = Neighbours(rows[:0], np.zeros(0))
        for start in range(0, len(rows), DIRECT):
            best = self.rank(query, np.concatenate([best.rows, rows[start : start + DIRECT]]), k)
        return best

    def _scan(self, queries: NDArray[np.float32], width: int, permitted: NDArray[np.int64] | None) -> _Scanned:
        """Finds the `width` nearest permitted rows with FAISS, on all cores."""
        parts = self._open()
        mask = self._mask(permitted)
        cores = os.cpu_count() or 1
        pieces = -(-PIECES * cores // len(parts)) if len(queries) == 1 else 1
        ranges = []
        for part in parts:
            if mask is None or mask[part.first : part.last].any():
                step = max(256, -(-(part.last - part.first) // pieces))
                ranges += [(part, first, min(first + step, part.last)) for first in range(part.first, part.last, step)]

        def one(span: tuple[MappedShard, int, int]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
            return search_part(*span, queries, width, mask)

        alone = len(queries) == 1 and len(ranges) > 1  # FAISS uses one thread for one query
        results = list(pool().map(one, ranges)) if alone else [one(span) for span in ranges]
        distances, rows = _best(results, width)
        return _Scanned(distances, rows, np.zeros(len(queries)))

    def _multiply(self, queries: NDArray[np.float32], width: int, permitted: NDArray[np.int64] | None) -> _Scanned:
        """Finds the `width` nearest permitted rows by matrix products: squared distances are |q|^2 - 2 q.x + |x|^2.

        Their rounding error grows with the lengths of q and x, and is returned as `slack`.
        """
        with np.errstate(over="ignore"):
            lengths, doubled = np.einsum("nd,nd->n", queries, queries), -2 * queries
        total = self.rows if permitted is None else len(permitted)
        buffer = np.empty((min(BLOCK, total), queries.shape[1]), np.float32)
        distances, found = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        largest = 0.0
        for start in range(0, total, BLOCK):
            stop = min(start + BLOCK, total)
            rows = np.arange(start, stop) if permitted is None else permitted[start:stop]
            x, own = self._block(rows, buffer)
            with np.errstate(all="ignore"):  # queries that overflow float32 are measured in float64
                squared = doubled @ x.T  # (nq, n), without |q|^2
                squared += own
            if not max(longest := float(own.max()), float(lengths.max())) < LONGEST:
                squared[~np.isfinite(squared)] = np.inf
            largest = max(largest, longest)
            near = _nearer(squared, rows, distances[:, -1:] if distances.shape[1] == width else None)
            distances, found = _best([(distances, found), near], width)
        distances += lengths[:, None]
        with np.errstate(over="ignore"):
            slack = ROUNDING / 4 * (np.sqrt(lengths.astype(np.float64)) + np.sqrt(largest)) ** 2
        return _Scanned(distances, np.where(np.isfinite(distances), found, -1), slack)

    def _block(
        self, rows: NDArray[np.int64], buffer: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Reads rows into the buffer; returns them, (n, D) float32, and their squared lengths, (n,)."""
        x, own = buffer[: len(rows)], np.empty(len(rows), np.float32)
        edges = np.linspace(0, len(rows), (os.cpu_count() or 1) + 1).astype(int).tolist()

        def one(first: int, last: int) -> None:
            halves = np.empty((STEP, buffer.shape[1]), np.float16)
            for start in range(first, last, STEP):
                stop = min(start + STEP, last)
                part = to_float32(self.read(rows[start:stop], halves[: stop - start]), x[start:stop])
                with np.errstate(over="ignore", invalid="ignore"):
                    np.einsum("nd,nd->n", part, part, out=own[start:stop])

        list(pool().map(one, edges, edges[1:]))
        return x, own

    def _on_devices(self, count: int) -> bool:
        """Moves the rows into GPU memory, at the first or the second scan; returns True if they are there.

        The first scan moves them if it has BATCH queries or more, or if an earlier index (`before`) has moved rows
        there. Otherwise, the second scan does. They are not moved if they do not fit. count: the number of queries.
        """
        if self._devices is None:
            return False
        with self._lock:
            first, self._searched = not self._searched, True
            if first and count < BATCH and self._before is None:
                return False
            loaded = self._before.rows if self._before is not None else 0
            if self._resident is None and (names := self._devices(max(1, self.rows - loaded))):
                self._files = self._files or RandomReader(self.shards, self.rows)
                self._resident = gpu.load(self._files.read, self.rows, names, self._before)
            if self._resident is None:
                self._devices = None  # the rows do not fit
            self._before = None
            return self._resident is not None

    def _scan_on_gpu(self, queries: NDArray[np.float32], width: int, permitted: NDArray[np.int64] | None) -> _Scanned:
        resident = self._resident
        found = None if resident is None else resident.scan(queries, width, permitted)
        if found is None:  # too little GPU memory to compute in
            self._resident = self._devices = None
            return self._scan(queries, width, permitted)
        return _Scanned(*found)

    def _mask(self, permitted: NDArray[np.int64] | None) -> NDArray[np.bool_] | None:
        if permitted is None:
            return None
        mask = np.zeros(self.rows, bool)
        mask[permitted] = True
        return mask

    def _open(self) -> list[MappedShard]:
        """Returns all feature files as FAISS indexes, opened at the first search."""
        with self._lock:
            if self._parts is None:
                self._parts = [open_shard(self.shards, n, stop) for n, _, stop in self.shards.spans(0, self.rows)]
            return self._parts


def _split(
    permitted: NDArray[np.int64] | None, covered: int, rows: int
) -> tuple[NDArray[np.int64] | None, NDArray[np.int64]]:
    """Splits permitted rows into those below `covered` and the others.

    The first part is None if all rows are permitted. rows: the number of all rows.
    """
    if permitted is None:
        return None, np.arange(covered, rows)
    place = int(np.searchsorted(permitted, covered))
    return (permitted if place == len(permitted) else permitted[:place]), permitted[place:]


def _best(
    results: list[tuple[NDArray[np.float32], NDArray[np.int64]]], width: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Merges several pairs (distances, rows): keeps the `width` smallest distances of each query, ascending."""
    distances = np.concatenate([result[0] for result in results], axis=1)
    rows = np.concatenate([result[1] for result in results], axis=1)
    if width < distances.shape[1]:
        chosen = np.argpartition(distances, width - 1, axis=1)[:, :width]
        distances, rows = np.take_along_axis(distances, chosen, 1), np.take_along_axis(rows, chosen, 1)
    order = np.argsort(distances, axis=1, kind="stable")
    return np.take_along_axis(distances, order, 1), np.take_along_axis(rows, order, 1)


def _nearer(
    squared: NDArray[np.float32], rows: NDArray[np.int64], limits: NDArray[np.float32] | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Returns each query's distances below its limit, and their rows: two arrays (nq, m).

    m is the number of distances of the query that has the most. A query with fewer has inf and -1 in the last places.
    This takes less time than selecting the smallest of all distances, because m is small in most blocks of rows.
    squared: (nq, n) distances. rows: (n,) the row of each column.
    limits: (nq, 1); None to return all distances.
    """
    if limits is None:
        return squared, np.broadcast_to(rows, squared.shape)
    query, column = np.nonzero(squared < limits)
    counts = np.bincount(query, minlength=len(squared))
    place = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
    shape = len(squared), int(counts.max(initial=0))
    distances, found = np.full(shape, np.inf, np.float32), np.full(shape, -1, np.int64)
    distances[query, place], found[query, place] = squared[query, column], rows[column]
    return distances, found
