"""Spreads the labels of a few items to all others.

The method is learning with local and global consistency (Zhou et al. 2004) on the graph of nearest neighbours. An item
has a weight for each label. In each round, every item gets new weights: mostly those of its neighbours, where nearer
neighbours count more. An item that had a label from the start also gets a fixed weight for this label in each round, so
its label is not lost.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from simsearch.common.progress import Progress, no_progress
from simsearch.curation.graph import Finding, Graph, neighbour_graph
from simsearch.curation.labels import label_numbers
from simsearch.errors import UsageError
from simsearch.storage.protocols import Searchable

NEIGHBOURS, SHOWN = 5, 5
"""Default number of neighbours in the graph, and largest number of neighbours shown with a finding."""

PASSED, ROUNDS = 0.9, 100
"""Fraction of an item's weights that comes from its neighbours in each round, and number of rounds.

More rounds would change the result by about 0.9 ** 100 = 3e-5.
"""

TOGETHER = 32
"""Largest number of labels that are spread at once; more labels are spread in several passes, to limit the memory."""


def spread_labels(
    snapshots: Searchable,
    seeds: Mapping[int, str] | None = None,
    k: int = NEIGHBOURS,
    progress: Progress = no_progress,
) -> list[Finding]:
    """Returns the unlabelled items that a label reaches, the most certain first, each with its nearest neighbours.

    snapshots: the index to examine, such as `engine.snapshots` of an `Engine`.
    seeds: maps ids of items to the labels to spread. All other items then count as unlabelled, even if they have labels
    in the index. None: the labels in the index are spread.
    Facts of each finding: `label`; `confidence`, the probability of that label.
    Raises UsageError if the index has no items or lacks an item of `seeds`, if there are fewer than two different
    labels, if no item is unlabelled, or if k is less than 1.
    """
    with neighbour_graph(snapshots, k, progress) as graph:
        items = graph.collection.items
        known = {item.id for item in items}
        if seeds and (unknown := sorted(seeds.keys() - known)):
            raise UsageError(f"the index has no item {unknown[0]}")
        labels = [seeds.get(item.id) if seeds else item.label for item in items]
        names, given = label_numbers(np.array(labels, object))
        if (given >= 0).all():
            raise UsageError(
                "all items have labels",
                hint="give the labels to spread in `seeds`; the labels in the index are then ignored",
                shell_hint="give the labels to spread with --tag NAME=LABEL; the labels in the index are then ignored",
            )
        probable = _spread(graph, given, len(names))
        best = probable.argmax(1)
        sure = probable[np.arange(len(items)), best]
        order = np.lexsort((np.arange(len(items)), -sure)).tolist()
        return [
            Finding(
                graph.collection.member(place),
                {"label": names[best[place]], "confidence": float(sure[place])},
                graph.evidence(place, SHOWN),
            )
            for place in order
            if given[place] < 0 and sure[place] > 0
        ]


def _spread(graph: Graph, given: NDArray[np.int64], count: int) -> NDArray[np.float32]:
    """Returns the probability of each label for each item: (n, count); zeros for an item that no label reaches.

    given: (n,) the number of each item's label, -1 for none. count: the number of labels.
    """
    n, k = graph.places.shape
    weights = graph.weights().ravel()
    used = np.flatnonzero(weights > 0)
    one, other, half = np.repeat(np.arange(n), k)[used], graph.places.ravel()[used], weights[used] / 2
    one, other, half = np.concatenate([one, other]), np.concatenate([other, one]), np.concatenate([half, half])
    order = np.argsort(one, kind="stable")
    one, other, half = one[order], other[order], half[order]
    degree = np.maximum(np.bincount(one, half, n), 1e-30)
    edge = (half / np.sqrt(degree[one] * degree[other])).astype(np.float32)[:, None]
    linked, starts = np.unique(one, return_index=True)
    found = np.zeros((n, count), np.float32)
    for first in range(0, count, TOGETHER):
        names = np.arange(first, min(first + TOGETHER, count))
        own = (given[:, None] == names).astype(np.float32) * (1 - PASSED)
        now = own
        for _ in range(ROUNDS):
            passed = np.zeros_like(now)
            if len(linked):
                passed[linked] = np.add.reduceat(edge * now[other], starts, axis=0)
            now = PASSED * passed + own
        found[:, names] = now
    total = found.sum(1, keepdims=True)
    shares: NDArray[np.float32] = np.divide(found, total, out=np.zeros_like(found), where=total > 0)
    return shares
