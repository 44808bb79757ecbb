"""Labels that the neighbours contradict.

The probability of each label is the share of an item's neighbours that have it, nearer ones counting more; the item
itself has no say. The rule is that of confident learning (Northcutt et al. 2021): a label counts as probable for an
item if its probability reaches the mean that items with that label have for it, and an item is suspicious if another
label is probable, more so than its own.
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


def suspicious_labels(
    snapshots: Searchable, count: int | None = None, k: int = NEIGHBOURS, progress: Progress = no_progress
) -> list[Finding]:
    """Returns the items whose labels are suspicious, the clearest first, with their nearest neighbours.

    count: the largest number of them; None for all. Facts: suggested, the more probable label; confidence, by how much.
    Raises UsageError if fewer than two labels are used.
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
    """Returns the different labels, sorted, and the number of each item's: (n,), -1 for none.

    Raises UsageError if there are fewer than two.
    """
    names = sorted({label for label in labels.tolist() if label is not None})
    if len(names) < 2:
        raise UsageError(f"the items have {len(names)} different labels, and at least two are needed")
    numbers = {name: number for number, name in enumerate(names)}
    return names, np.array([numbers.get(label, -1) for label in labels.tolist()], np.int64)


def label_probabilities(graph: Graph, given: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Returns the probability of each label by an item's neighbours: (n, count).

    given: (n,) numbers of labels, -1 for none. Rows of items without labelled neighbours are zero.
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
    """Applies the rule of confident learning to probabilities (n, c) and labels (n,), -1 for none.

    Returns the suggested label of each item, -1 if its own is not suspicious, and by how much it is more probable.
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
