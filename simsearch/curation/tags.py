"""Labels spread from the few items that have one to all others.

The harmonic solution of Zhu, Ghahramani and Lafferty (2003) on the graph of nearest neighbours: the probabilities of an
item's labels are the mean of its neighbours', nearer ones counting more, and those of labelled items are fixed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from simsearch.common.progress import Progress, no_progress
from simsearch.curation.graph import Finding, Graph, neighbour_graph
from simsearch.curation.labels import label_numbers
from simsearch.errors import UsageError
from simsearch.storage.protocols import Searchable

NEIGHBOURS, SHOWN = 10, 5

ROUNDS, SETTLED = 200, 1e-4
"""The most iterations, and the change of a probability below which they end."""


def spread_labels(
    snapshots: Searchable,
    seeds: Mapping[int, str] | None = None,
    k: int = NEIGHBOURS,
    progress: Progress = no_progress,
) -> list[Finding]:
    """Returns the items without a label that one reaches, the surest first, with their nearest neighbours.

    seeds: labels by item id, which take precedence over those of the index; with seeds, the labels of other items are
    not used. Facts: label, and confidence, its probability. Raises UsageError for unusable seeds or labels.
    """
    with neighbour_graph(snapshots, k, progress) as graph:
        items = graph.collection.items
        known = {item.id for item in items}
        if seeds and (unknown := sorted(seeds.keys() - known)):
            raise UsageError(f"the index has no item {unknown[0]}")
        labels = [seeds.get(item.id) if seeds else item.label for item in items]
        names, given = label_numbers(np.array(labels, object))
        if (given >= 0).all():
            raise UsageError("all items have labels", hint="--tag NAME=LABEL spreads others")
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


def _spread(
    graph: Graph, given: np.ndarray[tuple[int], np.dtype[np.int64]], count: int
) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Returns the probability of each label for each item: (n, count); zeros where no label reaches."""
    n = len(given)
    known = graph.places >= 0
    typical = np.maximum(np.where(known, graph.distances, 0).sum(1) / np.maximum(known.sum(1), 1), 1e-12)
    weights = np.where(known, np.exp(-np.where(known, graph.distances, 0) / typical[:, None]), 0)
    weights = (weights / weights.sum(1, keepdims=True).clip(1e-12)).astype(np.float32)
    fixed = np.flatnonzero(given >= 0)
    probable = np.zeros((n, count), np.float32)
    probable[fixed, given[fixed]] = 1
    for _ in range(ROUNDS):
        after = np.zeros_like(probable)
        for column in range(graph.places.shape[1]):
            after += weights[:, column, None] * probable[graph.places[:, column]]
        after[fixed] = probable[fixed]
        change = float(np.abs(after - probable).max())
        probable = after
        if change < SETTLED:
            break
    return probable
