"""Measures approximate searches: their recall, by held-out queries with known answers, and their time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.search import ann
from simsearch.search.ann import K

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.search.exact import FlatIndex
    from simsearch.search.ranking import Neighbours

QUERIES = 400
"""Number of held-out items; half of them choose the settings, the other half measure the recall."""

TIMED = 25
"""Number of queries that are timed, one at a time."""

SAMPLE = 16_384
"""Number of rows from which a projection or an encoder is learned."""


@dataclass(frozen=True)
class Benchmark:
    """Queries with known answers, to measure approximate searches with.

    flat: the exact search.
    rows: (n,) the rows to search in.
    queries: (nq, D) the vectors to search for.
    truth: (nq,) the distance from each query to its K-th nearest row among `rows`. `ann.K` is the number of neighbours
    for which the recall is measured.
    """

    flat: FlatIndex
    rows: NDArray[np.int64]
    queries: NDArray[np.float32]
    truth: NDArray[np.float64]

    @classmethod
    def of(cls, flat: FlatIndex, rows: NDArray[np.int64], queries: NDArray[np.float32]) -> Benchmark:
        """Returns a benchmark of (nq, D) queries, after an exact search for their true neighbours among `rows`."""
        found = flat.search(queries, K, rows)
        return cls(flat, rows, queries, np.array([each.distances[K - 1] for each in found]))

    def recalls(self, found: list[Neighbours], part: slice) -> NDArray[np.float64]:
        """Returns the recall of each query in `queries[part]`, as defined by `ann.recalls`.

        found: the results of these queries, in the same order.
        """
        return ann.recalls(found, self.truth[part])


def hold_out(
    flat: FlatIndex, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float16]]:
    """Splits the rows at random into rows for queries and rows to search in.

    Returns three arrays: the rows for queries, in random order, (nq,); the rows to search in, ascending, (n,); and the
    features of a sample of the rows to search in, (s, D), from which a projection or an encoder can be learned.
    """
    random = np.random.default_rng(0)
    shuffled = random.permutation(rows)
    count = min(QUERIES, len(rows) // 10)
    held_out, entries = shuffled[:count], np.sort(shuffled[count:])
    sample = flat.read(np.sort(random.choice(entries, min(SAMPLE, len(entries)), replace=False)))
    return held_out, entries, sample


def mixtures(queries: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns (nq, D) queries that are farther from all items than the given (nq, D) queries are.

    Pictures from outside an index are farther from its items than the items are from each other, and so harder for an
    approximate search. Each result is a mean of two of the queries, in which the second has a weight of 1/4 to 1/2.
    """
    share = np.random.default_rng(3).uniform(0.25, 0.5, (len(queries), 1)).astype(np.float32)
    mixed: NDArray[np.float32] = (1 - share) * queries + share * np.roll(queries, 1, axis=0)
    return mixed


def time_queries(search: Callable[[NDArray[np.float32]], Any], queries: NDArray[np.float32]) -> tuple[float, int]:
    """Returns the median time of a query in seconds, and the number of queries that were timed.

    search: called with one query, (1, D).
    """
    search(queries[:1])  # the first call is slower: it loads and allocates
    took = []
    for query in queries[:TIMED]:
        clock = time.perf_counter()
        search(query[None])
        took.append(time.perf_counter() - clock)
    return float(np.median(took)), len(took)
