"""How well a ranking by Euclidean distance agrees with labels: P@k, R-precision, average precision, recall, kNN.

Every query's whole ranking is evaluated, in blocks whose size does not depend on the number of queries. Distances come
from a float32 matrix product; the first places, which P@k and kNN look at, are measured again in float64, so that they
are those of an exact search, with ties to the lower row.

Definitions are those of Manning, Raghavan & Schütze, "Introduction to Information Retrieval", section 8.4; `hit@k` is
what metric learning calls recall@k (Jégou et al. 2011). Letters: N rows, nq queries, D dimension, R relevant rows.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
from simsearch.common.progress import Progress

PRECISIONS = (1, 5, 6, 10)

RECALLS = (10, 100)

NEIGHBOURS = 5

"""Votes of the kNN classifier."""


_CELLS = 1 << 23  # distances held at once

_MARGIN = 16  # rows measured again beyond those that are needed

_ROUNDING = 1e-5  # of float32 distances, relative to the largest squared norm

_NOWHERE = np.uint64(2**64 - 1)

Values = dict[str, "NDArray[np.float64]"]

"""By the name of a measure, its value for each query (nq,); NaN where it is undefined."""


@dataclass(frozen=True)
class LabelledFeatures:
    """What is searched: features (N, D) of any float dtype and labels (N,) of whole numbers from 0."""

    features: NDArray[np.floating[Any]]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or len(self.features) != len(self.labels):
            raise UsageError(f"features of shape {self.features.shape} do not fit {len(self.labels)} labels")
        if len(self.labels) and int(self.labels.min()) < 0:
            raise UsageError("labels are whole numbers from 0")


def retrieval(
    base: LabelledFeatures,
    queries: LabelledFeatures | None = None,
    *,
    precisions: Sequence[int] = PRECISIONS,
    recalls: Sequence[int] = RECALLS,
    neighbours: int = NEIGHBOURS,
    progress: Progress = lambda done, total: None,
) -> Values:
    """Measures of every query, by name; without `queries` each row of `base` queries once, itself left out.

    P@k: the share of the k nearest that carry the query's label. R-precision: P@R, with R the number of rows that carry
    it. AP: average precision over the whole ranking. recall@k: the share of those R that are among the k nearest.
    hit@k: whether any is. knn: whether the most frequent label among the nearest `neighbours` is the query's; of labels
    as frequent, that of the nearest one counts. Measures that divide by R are NaN for a query with R = 0. A place that
    a base of fewer than k rows does not have counts as a miss.
    """
    asked = queries or base
    if asked.features.shape[1] != base.features.shape[1]:
        raise UsageError(f"queries have {asked.features.shape[1]} dimensions, the index {base.features.shape[1]}")
    head = max([*precisions, *recalls[:1], neighbours])
    ranking = _Ranking(base, asked, queries is None, min(head, len(base.labels)))
    names = [
        *(f"P@{k}" for k in precisions),
        "R-precision",
        "AP",
        *(f"{what}@{k}" for what in ("recall", "hit") for k in recalls),
        "knn",
    ]
    values: Values = {name: np.zeros(len(asked.labels)) for name in names}
    step = max(1, min(1024, _CELLS // max(1, len(base.labels))))
    for start in range(0, len(asked.labels), step):
        block = slice(start, min(start + step, len(asked.labels)))
        for name, found in _measure(ranking, block, precisions, recalls, neighbours).items():
            values[name][block] = found
        progress(block.stop, len(asked.labels))
    return values


def _measure(
    ranking: _Ranking, block: slice, precisions: Sequence[int], recalls: Sequence[int], neighbours: int
) -> Values:
    """The measures of one block of queries."""
    wanted = ranking.asked.labels[block]
    order = ranking.order(block)  # (b, N or N - 1) rows, nearest first
    found = ranking.base.labels[order]
    query, place = np.nonzero(found == wanted[:, None])
    count = len(wanted)
    hits = np.bincount(query, minlength=count)  # R of each query
    nth = np.arange(len(query)) - np.repeat(np.cumsum(hits) - hits, hits)  # of the query's relevant rows, from 0

    def within(k: Any) -> NDArray[np.float64]:
        """How many relevant rows are among the first k (a number, or one for each relevant row)."""
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
    """Complete rankings by distance. head: how many first places must be exact."""

    def __init__(self, base: LabelledFeatures, asked: LabelledFeatures, alone: bool, head: int) -> None:
        self.base, self.asked, self.alone, self.head = base, asked, alone, head
        features = base.features
        self.mean = np.zeros(features.shape[1], np.float32)
        if len(features):  # distances do not change with the origin, but their rounding does
            self.mean = features[:: max(1, len(features) // 2048)].astype(np.float32).mean(0)
        self.chunks = range(0, len(features), 8192)
        self._kept: dict[int, NDArray[np.float32]] = {}
        self.squares = np.zeros(len(features), np.float32)
        for start in self.chunks:
            chunk = self._centred(features[start : start + 8192])
            self.squares[start : start + 8192] = np.einsum("nd,nd->n", chunk, chunk)
            if features.size <= 1 << 29:  # 2 GiB as float32; of more, each part is converted when it is needed
                self._kept[start] = chunk

    def _centred(self, rows: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        return rows.astype(np.float32) - self.mean

    def order(self, block: slice) -> NDArray[np.int64]:
        """(b, N) rows by ascending distance, or (b, N - 1) where a query is a row itself."""
        x = self._centred(self.asked.features[block])
        squared = np.empty((len(x), len(self.squares)), np.float32)
        for start in self.chunks:
            part = slice(start, start + 8192)
            chunk = self._kept[start] if start in self._kept else self._centred(self.base.features[part])
            np.matmul(x, chunk.T, out=squared[:, part])
        squared *= -2
        squared += self.squares
        squared += np.einsum("nd,nd->n", x, x)[:, None]
        np.maximum(squared, 0, out=squared)
        # The bits of floats that are not negative sort as whole numbers; with the row behind them, ties do too.
        keys = squared.view(np.uint32).astype(np.uint64)
        keys <<= np.uint64(32)
        keys |= np.arange(keys.shape[1], dtype=np.uint64)
        if self.alone:
            keys[np.arange(len(x)), np.arange(block.start, block.stop)] = _NOWHERE
        numbers = range(block.start, block.stop)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(self._settle, numbers, keys))
        found = (keys & np.uint64(2**32 - 1)).astype(np.int64)
        return found[:, :-1] if self.alone else found

    def _settle(self, number: int, keys: NDArray[np.uint64]) -> None:
        """Sorts a query's keys in place, and measures the first ones again in float64."""
        keys.sort()
        available = len(keys) - self.alone
        if not available:
            return
        squared = (keys[:available] >> np.uint64(32)).astype(np.uint32).view(np.float32)
        need = min(self.head, available)
        slack = _ROUNDING * max(float(self.squares.max()), float(squared[need - 1]))
        width = min(available, max(need + _MARGIN, int(np.searchsorted(squared, squared[need - 1] + slack, "right"))))
        rows = (keys[:width] & np.uint64(2**32 - 1)).astype(np.int64)
        difference = self.base.features[rows].astype(np.float64)
        difference -= self.asked.features[number].astype(np.float64)
        exact = np.einsum("nd,nd->n", difference, difference)
        keys[:width] = keys[:width][np.lexsort((rows, exact))]


def chance(base: NDArray[np.int64], asked: NDArray[np.int64] | None = None) -> float:
    """The expected P@k of a ranking at random. base, asked: labels; without `asked`, each row queries the others."""
    counts = np.bincount(base, minlength=int(asked.max(initial=0)) + 1 if asked is not None else 0)
    if asked is None:
        return float((counts[base] - 1).mean() / max(1, len(base) - 1)) if len(base) else math.nan
    return float(counts[asked].mean() / max(1, len(base)))
