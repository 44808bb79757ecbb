"""Exact search that reads few rows: short codes of all rows prove that most of them cannot be among the nearest.

A sketch has a narrow and a wide code of each row, from which `bounds` computes lower bounds on distances. A search
first measures a few rows with near codes, the seeds, to get an upper bound of the distance of the k-th nearest row.
Then it compares the narrow codes of all rows, and the wide codes of the rows that the narrow codes do not exclude. The
remaining rows are read and measured in float64. The result is the same as that of a scan of all rows, ties included. If
a search would read too many rows, the caller has to scan all rows instead.

Codes are points of a grid (see `bounds`). Narrow codes cannot exclude the few rows far outside it, called odd rows.

Shape letters: nq queries, k neighbours, n rows of the sketch, D dimension, w bytes of a code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from simsearch.search.bounds import Bounds, Encoded, squares
from simsearch.search.faiss_files import pool
from simsearch.search.narrow_codes import EXCLUDED, NarrowCodes, expected_rows
from simsearch.search.ranking import TINY, Neighbours, measured, relative_rounding
from simsearch.search.row_buffer import ROWS, RowBuffers, within_rounding

if TYPE_CHECKING:
    from numpy.typing import NDArray

FEWEST, SHARE = 4096, 64
"""A search uses the sketch if at least FEWEST rows and at least SHARE * k rows are permitted."""

SEEDS, FIRST = 8, 8
"""Numbers that determine how many rows are seeds, and how many rows are candidates for seeds.

The FIRST * k + FEW rows with the nearest narrow codes are candidates. The k + SEEDS candidates with the nearest wide
codes are the seeds.
"""

MOST = 0.05
"""If a search would read more than this fraction of the permitted rows, all rows are scanned instead."""

LISTED = 4096
"""Largest number of rows to list in a stripe by their narrow codes. Above it, a table of all distances is faster."""

BATCH = 8
"""With this number of queries or more, one thread searches for each query; with fewer, several threads do."""

PRODUCTS, GROUP = 1 << 22, 32
"""Largest number of distances in a table, and number of distances in a group.

The table's distances of each query are divided into groups. Seeds are chosen by the smallest distance of each group.
"""

FEW = 64
"""With fewer seeds than this, comparing each row with each seed is faster than `np.isin`. See also `FIRST`."""

LONGEST = 1e18
"""Distances below this have squares that float32 can hold."""

Read: TypeAlias = "Callable[[NDArray[np.int64], NDArray[np.float16]], NDArray[np.float16]]"
"""A function that reads the features of (n,) rows into an array, (n, D), and returns the array."""


class _Task(NamedTuple):
    """The arguments of a search that are the same for all queries. k: the number of neighbours.

    masks: from `NarrowCodes.masks`. most, threads: for one query, the most rows to read and the number of threads.
    """

    k: int
    masks: list[NDArray[np.bool_]]
    most: int
    read: Read
    threads: int


class _Query(NamedTuple):
    """A query and its codes. vector: (1, D). narrow, wide: (w,). errors: of both codes; see `bounds`."""

    vector: NDArray[np.float32]
    narrow: NDArray[np.uint8]
    wide: NDArray[np.uint8]
    errors: tuple[float, float]


class _Known(NamedTuple):
    """The rows that a search has read so far, and what follows from them.

    read: the number of these rows. seeds: the rows that were read first.
    rows: (m,) the rows that may be among the k nearest. features: (m, D), of `rows`.
    squared: (m,) the squared distances of `rows` in float32.
    distance: an upper bound of the distance of the k-th nearest row.
    """

    read: int
    seeds: NDArray[np.int64]
    rows: NDArray[np.int64]
    squared: NDArray[np.float32]
    features: NDArray[np.float16]
    distance: float


class Sketch:
    """The codes of the first n rows of the feature files. Safe for many threads.

    narrow, wide: (n, w) uint8, the codes. errors: (n, 2) float32, the errors of both codes of each row, rounded up.
    wanted: a search for ten neighbours first lists this number of rows, those with the nearest narrow codes.
    """

    def __init__(
        self,
        bounds: Bounds,
        narrow: NDArray[np.uint8],
        wide: NDArray[np.uint8],
        errors: NDArray[np.float32],
        wanted: int,
    ) -> None:
        self.bounds, self.rows, self.wanted = bounds, len(narrow), max(1, wanted)
        self._wide, self._errors = wide, np.ascontiguousarray(errors[:, 1])
        self._odd = np.flatnonzero(~(errors[:, 0] <= bounds.grids[0].cap))
        self._narrow = NarrowCodes(narrow, FEWEST)
        self._buffers = RowBuffers(len(bounds.mean))
        self._rounding = relative_rounding(len(bounds.mean))

    @property
    def odd(self) -> int:
        """The number of odd rows, whose narrow codes cannot exclude them."""
        return len(self._odd)

    def shares(self, queries: NDArray[np.float32], distances: list[float]) -> list[float]:
        """Returns two fractions of all rows: rows not excluded by narrow codes, and rows excluded by neither code.

        queries: (nq, D), over which the fractions are averaged.
        distances: for each query, the distance of its k-th neighbour.
        """
        encoded = self.bounds.encode(queries, query=True)
        left: list[tuple[int, int]] = []
        for number, (vector, distance) in enumerate(zip(queries, distances, strict=True)):
            query = _query(vector, encoded, number)
            table = self._narrow.table(query.narrow[None], [])[0]
            rows = self._narrow.rows_of(np.flatnonzero(table <= self._limit(query, distance)))
            reach = self.bounds.grids[1].reach(distance, self.bounds.defect, query.errors[1] + self._errors[rows])
            left.append((len(rows), int(np.count_nonzero(self._wide_squares(query, rows) <= reach))))
        return [float(share) for share in np.mean(np.array(left), axis=0) / max(1, self.rows)]

    def helps(self, k: int, permitted: int) -> bool:
        """Returns True if a search for k neighbours should use the sketch. permitted: the number of permitted rows."""
        return permitted >= FEWEST and k * SHARE <= permitted

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        permitted: NDArray[np.int64] | None,
        read: Read,
    ) -> list[Neighbours | None]:
        """Returns the k permitted rows nearest to each of (nq, D) queries; None for a query that needs a scan.

        permitted: the rows of the sketch that may be returned, at least k, ascending; None for all. read: see `Read`.
        """
        encoded = self.bounds.encode(queries, query=True)
        each = [_query(vector, encoded, number) for number, vector in enumerate(queries)]
        masks = self._narrow.masks(permitted)
        most = max(2 * ROWS, int(MOST * (self.rows if permitted is None else len(permitted))))
        task = _Task(k, masks, most, read, self._narrow.threads if len(queries) < BATCH else 1)
        if len(queries) < BATCH:
            return [self._one(query, task) if _usable(query) else None for query in each]
        if self._listed(k) <= LISTED:
            return list(pool().map(lambda query: self._one(query, task) if _usable(query) else None, each))
        answers: list[Neighbours | None] = []
        size = max(1, PRODUCTS // self.rows)
        for start in range(0, len(each), size):
            part = each[start : start + size]
            distances = self._narrow.table(np.stack([query.narrow for query in part]), masks)

            def one(number: int, part: list[_Query] = part, distances: Any = distances) -> Neighbours | None:
                if not _usable(part[number]):
                    return None
                return self._by_table(part[number], distances[number], task)

            answers += pool().map(one, range(len(part)))
        return answers

    def _listed(self, k: int) -> int:
        """Returns how many rows to list first in each stripe of `NarrowCodes`; grows with `wanted` and k."""
        share = max(64, self.wanted * -(-k // 10)) // self._narrow.stripes
        return share + 3 * math.isqrt(share) + k

    # -- the narrow codes

    def _one(self, query: _Query, task: _Task) -> Neighbours | None:
        """Searches for one query: lists ever more rows with near narrow codes; returns None if a scan is needed."""
        wanted = self._listed(task.k)
        known: _Known | None = None
        parts, short = [], None
        while wanted <= LISTED:
            found = self._narrow.nearest(query.narrow, wanted, task.masks, task.threads, short)
            if short is None:
                parts = found
            else:
                for stripe, part in zip(short, found, strict=True):
                    parts[stripe] = part
            rows, near = np.concatenate([part.rows for part in parts]), np.concatenate([part.near for part in parts])
            if known is None:
                count = min(FIRST * task.k + FEW, len(near))
                first = rows if count == len(rows) else rows[np.argpartition(near, count - 1)[:count]]
                known = self._read_seeds(query, first, self._wide_squares(query, first), task)
            if known is None:
                return None
            limit = self._limit(query, known.distance)
            short = [stripe for stripe, part in enumerate(parts) if part.edge <= limit]
            if not short:
                rows = rows[near <= limit]
                return self._finish(query, rows, self._wide_squares(query, rows), known, task)
            wanted = max(4 * wanted, expected_rows(near, limit) // self._narrow.stripes)
        return self._by_table(query, self._narrow.table(query.narrow[None], task.masks)[0], task, known)

    def _by_table(
        self, query: _Query, distances: NDArray[np.float32], task: _Task, known: _Known | None = None
    ) -> Neighbours | None:
        """Searches for one query by a table of the distances of narrow codes; returns None if a scan is needed.

        distances: (n,) the squared distances of all narrow codes, from `NarrowCodes.table`.
        known: the rows that were read before.
        """
        if known is None:
            whole = len(distances) // GROUP * GROUP
            best = distances[:whole].reshape(-1, GROUP).min(1)
            place = min(2 * task.k + SEEDS, len(best) - 1)
            edge = np.partition(best, place)[place]
            seeds = self._narrow.rows_of(np.flatnonzero((distances <= edge) & (distances < EXCLUDED)))
            if not task.k <= len(seeds) <= task.most:
                return None
            known = self._read_seeds(query, seeds, self._wide_squares(query, seeds), task)
            if known is None:
                return None
        limit = self._limit(query, known.distance)
        columns = np.flatnonzero(distances <= min(limit, float(EXCLUDED) / 2))
        if len(columns) > 4 * task.most:
            return None
        rows = self._narrow.rows_of(columns)
        return self._finish(query, rows, self._wide_squares(query, rows), known, task)

    def _limit(self, query: _Query, distance: float) -> float:
        """Returns the largest squared distance between the narrow codes of the query and a row within `distance` of it.

        The narrow code of an odd row (see `odd`) can be farther away.
        """
        grid = self.bounds.grids[0]
        return float(grid.reach(distance, self.bounds.defect, query.errors[0] + grid.cap))

    # -- the wide codes and the rows

    def _read_seeds(
        self, query: _Query, rows: NDArray[np.int64], wide: NDArray[np.int64], task: _Task
    ) -> _Known | None:
        """Measures the seeds, those of `rows` with the nearest wide codes. Returns None if float32 overflows.

        wide: the squared distances between the wide codes of `rows` and the query's wide code.
        """
        count = min(task.k + SEEDS, len(rows))
        seeds = rows if count == len(rows) else rows[np.argpartition(wide, count - 1)[:count]]
        nothing = np.zeros((0, query.vector.shape[1]), np.float16)
        known = _Known(0, seeds, seeds[:0], np.zeros(0, np.float32), nothing, np.inf)
        for start in range(0, count, ROWS):
            known = self._with_rows(known, query, seeds[start : start + ROWS], task)
        return known if known.distance < LONGEST else None

    def _with_rows(self, known: _Known, query: _Query, rows: NDArray[np.int64], task: _Task) -> _Known:
        """Reads at most `ROWS` more rows; returns `known` with the results from these rows."""
        buffer = self._buffers.get()
        task.read(rows, buffer.features[: len(rows)])
        near = buffer.near(query.vector, len(rows), task.k, known.squared)
        before = known.squared <= within_rounding(near.best, self._rounding)
        return _Known(
            known.read + len(rows),
            known.seeds,
            np.concatenate([known.rows[before], rows[near.places]]),
            np.concatenate([known.squared[before], near.squared]),
            np.concatenate([known.features[before], buffer.features[near.places]]),
            float(np.sqrt(near.best * (1 + 2 * self._rounding) + TINY)),
        )

    def _finish(
        self,
        query: _Query,
        rows: NDArray[np.int64],
        wide: NDArray[np.int64],
        known: _Known,
        task: _Task,
    ) -> Neighbours | None:
        """Reads the rows that may be among the nearest, and returns the k nearest; None if too many rows would be read.

        rows: the rows that the narrow codes do not exclude. Rows with near wide codes are read first.
        wide: the squared distances between the wide codes of `rows` and the query's wide code.
        """
        odd = self._odd[~np.isin(self._odd, rows)] if len(self._odd) else self._odd
        if len(odd):
            if task.masks:
                odd = odd[
                    [bool(task.masks[row % self._narrow.stripes][row // self._narrow.stripes]) for row in odd.tolist()]
                ]
            rows = np.concatenate([rows, odd])
            wide = np.concatenate([wide, self._wide_squares(query, odd)])
        rows, wide = self._within(query, rows, wide, known.distance)
        order = np.argsort(wide, kind="stable")
        rows, wide = rows[order], wide[order]
        fresh = ~(rows[:, None] == known.seeds).any(1) if len(known.seeds) < FEW else ~np.isin(rows, known.seeds)
        rows, wide = rows[fresh], wide[fresh]
        while len(rows):
            if len(rows) + known.read > task.most:
                return None
            known = self._with_rows(known, query, rows[:ROWS], task)
            rows, wide = self._within(query, rows[ROWS:], wide[ROWS:], known.distance)
        return measured(query.vector[0], known.rows, known.features, task.k)

    def _wide_squares(self, query: _Query, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the squared distances between the query's wide code and those of (m,) rows."""
        return squares(np.take(self._wide, rows, 0), query.wide)

    def _within(
        self, query: _Query, rows: NDArray[np.int64], wide: NDArray[np.int64], distance: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns `rows` and `wide` without the rows that are certainly farther than `distance` from the query.

        wide: as in `_finish`.
        """
        errors = query.errors[1] + self._errors[rows]
        near = wide <= self.bounds.grids[1].reach(distance, self.bounds.defect, errors)
        return rows[near], wide[near]


def _query(vector: NDArray[np.float32], encoded: list[Encoded], number: int) -> _Query:
    narrow, wide = encoded
    errors = float(narrow.errors[number]), float(wide.errors[number])
    return _Query(vector[None], narrow.codes[number], wide.codes[number], errors)


def _usable(query: _Query) -> bool:
    """Returns False for a query with values so large that float32 overflowed."""
    return bool(np.isfinite(query.errors).all())
