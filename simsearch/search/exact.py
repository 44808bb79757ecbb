"""Exact Euclidean nearest neighbours over the feature shards.

One query is shared among the cores range by range, so that it is as fast as the memory. Many at once are a matrix
product over blocks of rows decoded to float32. Either way the best candidates of float32 are measured again in
float64, which settles their order; the search is repeated with more of them while rounding could hide a better one.
Only the scan for a single query touches the mapping; whatever else needs rows reads them
(`simsearch.storage.random_reader`). Where the
rows are in a GPU's memory, it names the candidates instead (`simsearch.search.gpu`).

Letters: nq queries, k neighbours, D dimension, n rows.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from simsearch.common.float16 import to_float32
from simsearch.errors import IndexDamagedError
from simsearch.search.faiss_files import MappedShard, open_shard, pool, search_part
from simsearch.storage.feature_files import FeatureFiles
from simsearch.storage.random_reader import RandomReader

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.search.gpu import GpuIndex

DIRECT = 2048
"""Up to this many permitted rows are fetched and measured one by one instead of scanning all."""

ROUNDING = 1e-4
"""Relative margin on squared float32 distances, above the rounding of a sum of 4096 terms."""

LONGEST = 1e37
"""Squared lengths below this do not overflow float32 when they are added and multiplied."""

BATCH = 24
"""From this many queries on, a matrix product is faster than a scan for each."""

BLOCK = 2048
"""Rows decoded to float32 at once: 32 MiB at D = 4096."""

STEP = 256
"""Rows that a core reads, decodes and measures while they are in its cache."""

PIECES = 4
"""Ranges for each core that one query is split into, so that none waits long for the last."""


class Neighbours(NamedTuple):
    """The rows nearest to one query and their distances (float64, not squared), ascending.

    At least k where there are as many, and more where several rows tie for the k-th place.
    """

    rows: NDArray[np.int64]
    distances: NDArray[np.float64]


class _Scanned(NamedTuple):
    """What float32 finds nearest: squared distances, ascending, and rows, (nq, width); -1 where there are none.

    slack: (nq,) by how much rounding may have moved a squared distance, beyond the relative ROUNDING.
    """

    distances: NDArray[np.float32]
    rows: NDArray[np.int64]
    slack: NDArray[np.float64]


class FlatIndex:
    """The first `rows` rows of some shards, searchable. Safe for many threads; later appends do not disturb it.

    devices: names the torch devices that are to hold so many rows, if any. before: what held fewer of these rows.
    """

    def __init__(
        self,
        shards: FeatureFiles,
        rows: int,
        devices: Callable[[int], Sequence[str]] | None = None,
        before: FlatIndex | None = None,
    ) -> None:
        self.shards, self.rows = shards, rows
        self._devices = devices
        self._before = before._resident if before is not None and before.shards is shards else None
        self._resident: GpuIndex | None = None
        self._asked = False
        self._parts: list[MappedShard] | None = None
        self._files: RandomReader | None = None
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
            return [rank_exact(query, permitted, features, k) for query in queries]
        found: list[Neighbours | None] = [None] * len(queries)
        pending = list(range(len(queries)))
        width = min(available, k + 16)
        scan = self._multiply if len(queries) >= BATCH else self._scan
        if self._on_devices(len(queries)):
            scan = self._by_devices
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

    def read(self, rows: NDArray[np.int64], out: NDArray[np.float16] | None = None) -> NDArray[np.float16]:
        """The given rows in that order: (n, D) float16; in `out`, if that is given."""
        with self._lock:
            if self._files is None:
                self._files = RandomReader(self.shards, self.rows)
        return self._files.read(rows, out)

    def rank(self, query: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> Neighbours:
        """The k nearest of the given rows, measured in float64, and those that tie with the last."""
        return rank_exact(query, rows, self.read(rows), k)

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

        def one(span: tuple[MappedShard, int, int]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
            return search_part(*span, queries, width, mask)

        alone = len(queries) == 1 and len(ranges) > 1  # FAISS gives one query one thread
        results = list(pool().map(one, ranges)) if alone else [one(span) for span in ranges]
        distances, rows = _best(results, width)
        return _Scanned(distances, rows, np.zeros(len(queries)))

    def _multiply(self, queries: NDArray[np.float32], width: int, permitted: NDArray[np.int64] | None) -> _Scanned:
        """Squared distances as |q|^2 - 2 q.x + |x|^2, whose rounding grows with the lengths of q and x."""
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
            with np.errstate(all="ignore"):  # what float32 cannot hold is measured otherwise
                squared = doubled @ x.T  # (nq, n), less the queries' own lengths
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
        """Rows as float32, in the buffer, (n, D), and their squared lengths (n,); each core takes a part."""
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
        """Whether the rows are in the devices' memory: put there by the second search, or a batch."""
        if self._devices is None:
            return False
        with self._lock:
            first, self._asked = not self._asked, True
            if first and count < BATCH and self._before is None:
                return False
            there = self._before.rows if self._before is not None else 0  # on the devices already
            if self._resident is None and (names := self._devices(max(1, self.rows - there))):
                from simsearch.search import gpu

                self._files = self._files or RandomReader(self.shards, self.rows)
                self._resident = gpu.load(self._files.read, self.rows, names, self._before)
            if self._resident is None:
                self._devices = None  # they do not fit
            self._before = None
            return self._resident is not None

    def _by_devices(self, queries: NDArray[np.float32], width: int, permitted: NDArray[np.int64] | None) -> _Scanned:
        resident = self._resident
        found = None if resident is None else resident.scan(queries, width, permitted)
        if found is None:  # no room to compute in
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
        """All shards as FAISS indexes, opened at the first search."""
        with self._lock:
            if self._parts is None:
                self._parts = [open_shard(self.shards, n, stop) for n, _, stop in self.shards.spans(0, self.rows)]
            return self._parts


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


def _nearer(
    squared: NDArray[np.float32], rows: NDArray[np.int64], limits: NDArray[np.float32] | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Of (nq, n) distances to rows (n,), those below each query's limit (nq, 1), side by side; inf fills the gaps.

    Most blocks hold few of them, which spares looking for the best among all. limits: None for no limit.
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


def rank_exact(
    query: NDArray[np.float32], rows: NDArray[np.int64], features: NDArray[np.float16], k: int
) -> Neighbours:
    """The k nearest of the given rows by float64 arithmetic, and those that tie with the last."""
    k = min(k, len(rows))
    near = _within_reach(query, features, k)
    rows, features = rows[near], features[near]
    with np.errstate(invalid="ignore"):  # damaged rows may be infinite
        difference = to_float32(features).astype(np.float64)
        difference -= query
        distances = np.sqrt(np.einsum("nd,nd->n", difference, difference))  # of two squares, the roots may be equal
    order = np.lexsort((rows, distances))
    last = int(np.searchsorted(distances[order], distances[order[k - 1]], side="right"))
    chosen = order[:last]
    return Neighbours(rows[chosen], distances[chosen])


def _within_reach(query: NDArray[np.float32], features: NDArray[np.float16], k: int) -> NDArray[np.int64]:
    """Those of (n, D) features that may be among the k nearest, or tie with the last: all beyond are farther."""
    if len(features) <= k + 8:
        return np.arange(len(features))
    with np.errstate(over="ignore", invalid="ignore"):
        difference = to_float32(features)
        difference -= query
        squared = np.einsum("nd,nd->n", difference, difference)
    if not np.isfinite(squared).all():  # more than float32 can hold
        return np.arange(len(features))
    reach = np.float64(np.partition(squared, k - 1)[k - 1]) * (1 + 3 * ROUNDING) + 1e-30
    return np.flatnonzero(squared <= reach)
