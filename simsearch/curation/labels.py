"""Finds items whose labels contradict those of their neighbours.

The probability of a label for an item is the weighted share of the item's labelled neighbours that have this label.
Nearer neighbours weigh more, and the item's own label is not used.
The rule is that of confident learning (Northcutt et al. 2021). Each label has a threshold: its mean probability for
the items that have this label. A label is plausible for an item if its probability for the item reaches the threshold.
An item's own label is suspicious if another label is plausible and more probable.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from simsearch.common.progress import Progress, no_progress
from simsearch.curation.graph import Finding, Graph, neighbour_graph
from simsearch.errors import UsageError
from simsearch.storage.protocols import Searchable

NEIGHBOURS, SHOWN = 10, 5
"""Default number of neighbours that give the probabilities, and largest number of them shown with a finding."""


def suspicious_labels(
    snapshots: Searchable, count: int | None = None, k: int = NEIGHBOURS, progress: Progress = no_progress
) -> list[Finding]:
    """Returns the items with a suspicious label, the clearest cases first, each with its nearest neighbours.

    snapshots: the index to examine, such as `engine.snapshots` of an `Engine`.
    count: the largest number of items to return; None for all.
    Facts of each finding: `suggested`, the more probable label; `confidence`, the probability of the suggested label
    minus that of the item's own label.
    Raises UsageError if the items have fewer than two different labels, if there are no items, or if k is less than 1.
    """
    with neighbour_graph(snapshots, k, progress) as graph:
        labels = np.array([item.label for item in graph.collection.items], object)
        names, given = label_numbers(labels)
        probable = label_probabilities(graph, given, len(names))
        suggested, margins = find_issues(probable, given)
        order = np.lexsort((np.arange(len(margins)), -margins))
        chosen = [place for place in order.tolist() if suggested[place] >= 0][:count]
        return [
            Finding(
                graph.collection.member(place),
                {"suggested": names[suggested[place]], "confidence": float(margins[place])},
                graph.evidence(place, SHOWN),
            )
            for place in chosen
        ]


def label_numbers(labels: NDArray[Any]) -> tuple[list[str], NDArray[np.int64]]:
    """Returns the distinct labels, sorted, and the position of each item's label in that list, -1 for None.

    labels: (n,) texts or None. The positions are (n,) int64. Raises UsageError if there are fewer than two distinct
    labels.
    """
    names = sorted({label for label in labels.tolist() if label is not None})
    if len(names) < 2:
        raise UsageError(f"the items have {len(names)} different labels, and at least two are needed")
    numbers = {name: number for number, name in enumerate(names)}
    return names, np.array([numbers.get(label, -1) for label in labels.tolist()], np.int64)


def label_probabilities(graph: Graph, given: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Returns the probability of each label for each item, estimated from the item's neighbours: (n, count) float64.

    given: (n,) the position of each item's label in the list of distinct labels, -1 for no label.
    count: the number of distinct labels.
    The row of an item is zero if none of its neighbours has a label.
    """
    n, k = graph.places.shape
    probable = np.zeros((n, count))
    known: NDArray[np.bool_] = (graph.places >= 0) & (given[graph.places] >= 0)
    weights = graph.weights()
    for column in range(k):
        rows = np.flatnonzero(known[:, column])
        probable[rows, given[graph.places[rows, column]]] += weights[rows, column]
    total = probable.sum(1, keepdims=True)
    shares: NDArray[np.float64] = np.divide(probable, total, out=np.zeros_like(probable), where=total > 0)
    return shares


def find_issues(
    probable: NDArray[np.float64], given: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns a suggested label and a margin for each item, (n,) each, by the rule of confident learning.

    Labels are given as positions in the list of distinct labels.
    probable: (n, count), from `label_probabilities`. given: (n,) each item's own label, -1 for no label.
    The margin is the probability of the suggested label minus that of the item's own label. Both results are -1 if the
    item has no label or its label is not suspicious.
    """
    n, count = probable.shape
    limits = np.array(
        [probable[given == label, label].mean() if (given == label).any() else 2 for label in range(count)]
    )
    confident = np.where(probable >= np.maximum(limits, 1e-12), probable, -1.0)
    best = confident.argmax(1)
    labelled = given >= 0
    own = np.where(labelled, probable[np.arange(n), given], 0)
    margins = confident[np.arange(n), best] - own
    issue = labelled & (best != given) & (margins > 0)
    return np.where(issue, best, -1), np.where(issue, margins, -1.0)
