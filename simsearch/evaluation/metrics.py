"""Measures how well rankings by Euclidean distance agree with labels: P@k, R-precision, AP, recall, kNN accuracy.

The whole ranking of every query is evaluated. Queries are processed in blocks, to limit the memory. Distances are
computed by a float32 matrix product. The nearest rows, which P@k and kNN use, are measured again in float64, so their
order is the same as in an exact search. Rows at the same distance are ordered by their number.

The definitions are those of Manning, Raghavan & Schütze, "Introduction to Information Retrieval", section 8.4. Another
measure, hit@k, is called recall@k in metric learning (Jégou et al. 2011); see `retrieval`.

Shape letters: N ranked rows, nq queries, b queries of a block, D dimension of the features, R relevant rows of a query.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common.distances import squared_norms
from simsearch.common.progress import Progress
from simsearch.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

PRECISIONS = (1, 5, 6, 10)
"""The values of k for which P@k is measured by default."""

RECALLS = (10, 100)
"""The values of k for which recall@k and hit@k are measured by default."""

NEIGHBOURS = 5
"""The number of nearest rows that vote in the kNN classifier by default."""

_CELLS = 1 << 23  # number of distances in memory at once
_MARGIN = 16  # rows that are measured again in float64 beyond those needed
_ROUNDING = 1e-5  # error of squared distances in float32, as a fraction of the largest squared norm
_LAST = np.uint64(2**64 - 1)  # the key of a row that is left out; all other keys are smaller

Values = dict[str, "NDArray[np.float64]"]
"""Maps the name of each measure to its values for the nq queries, an array (nq,); NaN where a value is undefined."""


@dataclass(frozen=True)
class LabelledFeatures:
    """Features (N, D) of any float dtype, and the label of each row: (N,), whole numbers from 0.

    Raises UsageError if there are not as many labels as rows, or if a label is negative.
    """

    features: NDArray[np.floating[Any]]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or len(self.features) != len(self.labels):
            raise UsageError(f"features of shape {self.features.shape} do not fit {len(self.labels)} labels")
        if len(self.labels) and int(self.labels.min()) < 0:
            raise UsageError(f"a label is {self.labels.min()}; labels are whole numbers from 0")


def retrieval(
    base: LabelledFeatures,
    queries: LabelledFeatures | None = None,
    *,
    precisions: Sequence[int] = PRECISIONS,
    recalls: Sequence[int] = RECALLS,
    neighbours: int = NEIGHBOURS,
    observe: Callable[[slice, NDArray[np.int64]], None] = lambda block, order: None,
    progress: Progress = lambda done, total: None,
) -> Values:
    """Ranks the rows for each query by distance, and returns the values of the measures described below.

    A row is relevant if it has the query's label. R is the number of relevant rows.

    base: the rows that are ranked, and their labels.
    queries: if None, each row of `base` is a query, and its ranking contains only the other rows.
    precisions: the values of k for P@k. recalls: the values of k for recall@k and hit@k.
    neighbours: the number of rows that vote for `knn`.
    observe: called for each block of b queries, with the block as a slice of the queries, and with the ranking: row
    numbers, nearest first, (b, N), or (b, N - 1) if `queries` is None.
    progress: called with the number of queries done and the number of all queries.

    P@k: the fraction of the k nearest that are relevant.
    R-precision: P@R.
    AP: average precision over the whole ranking.
    recall@k: the fraction of the R relevant rows that are among the k nearest.
    hit@k: 1 if a relevant row is among the k nearest, else 0.
    knn: 1 if the most frequent label among the `neighbours` nearest rows is the query's, else 0. If several labels are
    equally frequent, the one that comes first in the ranking counts.

    If R = 0, all measures except P@k and knn are NaN. If fewer than k rows are ranked, P@k counts the missing rows as
    not relevant. Raises UsageError if `queries` and `base` differ in their dimension.
    """
    chosen = queries or base
    if chosen.features.shape[1] != base.features.shape[1]:
        ours, theirs = chosen.features.shape[1], base.features.shape[1]
        raise UsageError(f"the queries have {ours} dimensions, but the ranked rows have {theirs}")
    head = max([*precisions, *recalls[:1], neighbours])
    ranking = _Ranking(base, chosen, queries is None, min(head, len(base.labels)))
    names = [
        *(f"P@{k}" for k in precisions),
        "R-precision",
        "AP",
        *(f"{what}@{k}" for what in ("recall", "hit") for k in recalls),
        "knn",
    ]
    values: Values = {name: np.zeros(len(chosen.labels)) for name in names}
    step = max(1, min(1024, _CELLS // max(1, len(base.labels))))
    for start in range(0, len(chosen.labels), step):
        block = slice(start, min(start + step, len(chosen.labels)))
        order = ranking.order(block)
        observe(block, order)
        for name, found in _measure(ranking, block, order, precisions, recalls, neighbours).items():
            values[name][block] = found
        progress(block.stop, len(chosen.labels))
    return values


def _measure(
    ranking: _Ranking,
    block: slice,
    order: NDArray[np.int64],
    precisions: Sequence[int],
    recalls: Sequence[int],
    neighbours: int,
) -> Values:
    """Returns a dict from each measure's name to its values, (b,), for one block of b queries.

    order: row numbers, nearest first: (b, N), or (b, N - 1) if the queries are the rows themselves.
    precisions, recalls, neighbours: as for `retrieval`.
    """
    wanted = ranking.queries.labels[block]
    found = ranking.base.labels[order]
    query, place = np.nonzero(found == wanted[:, None])
    count = len(wanted)
    hits = np.bincount(query, minlength=count)  # (b,), R of each query
    nth = np.arange(len(query)) - np.repeat(np.cumsum(hits) - hits, hits)  # place among the query's hits, from 0

    def within(k: Any) -> NDArray[np.float64]:
        """Returns the number of relevant rows among the k nearest of each query: (b,).

        k: one number for all queries, or an array with, for each element of `place`, the k of that element's query.
        """
        return np.bincount(query[place < k], minlength=count).astype(np.float64)

    values: Values = {f"P@{k}": within(k) / k for k in precisions}
    with np.errstate(invalid="ignore"):
        values["R-precision"] = within(hits[query]) / hits
        values["AP"] = np.bincount(query, (nth + 1) / (place + 1), minlength=count) / hits
        for k in recalls:
            values[f"recall@{k}"] = within(k) / hits
            values[f"hit@{k}"] = np.where(hits > 0, (within(k) > 0).astype(float), np.nan)
    votes = found[:, :neighbours]
    if votes.shape[1]:
        same = (votes[:, :, None] == votes[:, None, :]).sum(2)
        values["knn"] = (votes[np.arange(count), same.argmax(1)] == wanted).astype(float)
    else:
        values["knn"] = np.zeros(count)
    return values


class _Ranking:
    """Ranks all rows of `base` by distance to each query.

    leave_one_out: True if the queries are the rows of `base`; each is then left out of its own ranking.
    head: the number of nearest rows that must be in the exact order.
    """

    def __init__(self, base: LabelledFeatures, queries: LabelledFeatures, leave_one_out: bool, head: int) -> None:
        self.base, self.queries, self.leave_one_out, self.head = base, queries, leave_one_out, head
        features = base.features
        self.mean = np.zeros(features.shape[1], np.float32)
        if len(features):  # centred features have smaller rounding errors
            self.mean = features[:: max(1, len(features) // 2048)].astype(np.float32).mean(0)
        self.chunks = range(0, len(features), 8192)
        self._kept: dict[int, NDArray[np.float32]] = {}
        self.squares = np.zeros(len(features), np.float32)
        for start in self.chunks:
            chunk = self._centred(features[start : start + 8192])
            self.squares[start : start + 8192] = squared_norms(chunk)
            if features.size <= 1 << 29:  # up to 2 GiB as float32 are kept; more is converted for each block
                self._kept[start] = chunk

    def _centred(self, rows: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        return rows.astype(np.float32) - self.mean

    def order(self, block: slice) -> NDArray[np.int64]:
        """Returns row numbers by ascending distance for b queries: (b, N), or (b, N - 1) with `leave_one_out`.

        block: a slice of the queries.
        """
        x = self._centred(self.queries.features[block])
        squared = np.empty((len(x), len(self.squares)), np.float32)
        for start in self.chunks:
            part = slice(start, start + 8192)
            chunk = self._kept[start] if start in self._kept else self._centred(self.base.features[part])
            np.matmul(x, chunk.T, out=squared[:, part])
        squared *= -2
        squared += self.squares
        squared += squared_norms(x)[:, None]
        np.maximum(squared, 0, out=squared)
        # The bits of non-negative floats sort like integers. The low bits hold the row, so equal distances sort by row.
        keys = squared.view(np.uint32).astype(np.uint64)
        keys <<= np.uint64(32)
        keys |= np.arange(keys.shape[1], dtype=np.uint64)
        if self.leave_one_out:
            keys[np.arange(len(x)), np.arange(block.start, block.stop)] = _LAST
        numbers = range(block.start, block.stop)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(self._sort_exactly, numbers, keys))
        found = (keys & np.uint64(2**32 - 1)).astype(np.int64)
        return found[:, :-1] if self.leave_one_out else found

    def _sort_exactly(self, number: int, keys: NDArray[np.uint64]) -> None:
        """Sorts the keys of one query in place: at least the `head` nearest rows by distances computed in float64.

        number: the number of the query. keys: (N,) uint64, the bits of the squared distance followed by the row number.
        """
        keys.sort()
        available = len(keys) - self.leave_one_out
        if not available:
            return
        squared = (keys[:available] >> np.uint64(32)).astype(np.uint32).view(np.float32)
        need = min(self.head, available)
        slack = _ROUNDING * max(float(self.squares.max()), float(squared[need - 1]))
        width = min(available, max(need + _MARGIN, int(np.searchsorted(squared, squared[need - 1] + slack, "right"))))
        rows = (keys[:width] & np.uint64(2**32 - 1)).astype(np.int64)
        difference = self.base.features[rows].astype(np.float64)
        difference -= self.queries.features[number].astype(np.float64)
        exact = squared_norms(difference)
        keys[:width] = keys[:width][np.lexsort((rows, exact))]


def chance(base: NDArray[np.int64], queries: NDArray[np.int64] | None = None) -> float:
    """Returns the expected P@k of a random ranking.

    base: the labels of the rows, (N,). queries: the labels of the queries, (nq,); if None, each row is a query for all
    other rows.
    """
    counts = np.bincount(base, minlength=int(queries.max(initial=0)) + 1 if queries is not None else 0)
    if queries is None:
        return float((counts[base] - 1).mean() / max(1, len(base) - 1)) if len(base) else math.nan
    return float(counts[queries].mean() / max(1, len(base)))
