"""Finds outliers: items much farther from their nearest neighbours than those are from their own neighbours.

The score is a simplified local outlier factor (LOF, Breunig et al. 2000). It is the mean distance from an item to its k
nearest neighbours, divided by the average of the neighbours' own mean distances. An ordinary item scores about 1, in
dense and in sparse regions alike. So pictures with much detail, which are far from all other pictures, are not outliers
just for that reason.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simsearch.common.progress import Progress, no_progress
from simsearch.curation.graph import Finding, Graph, neighbour_graph
from simsearch.errors import UsageError
from simsearch.storage.protocols import Searchable

NEIGHBOURS, SHOWN = 10, 5
"""Default number of neighbours that a score is computed from, and largest number of neighbours shown with a finding."""

COPIES = 0.5
"""This fraction of the median of all mean distances is added to the numerator and the denominator of each score.

Without this, an item near a group of copies would have a very high score, since the copies are almost at distance 0
from each other.
"""


def outliers(
    snapshots: Searchable, count: int = 20, k: int = NEIGHBOURS, progress: Progress = no_progress
) -> list[Finding]:
    """Returns the `count` items with the highest scores, the highest first, each with its nearest neighbours.

    snapshots: the index to examine, such as `engine.snapshots` of an `Engine`.
    Facts of each finding: `score`; `distance`, the mean distance to the k nearest neighbours.
    Raises UsageError if `count` or k is less than 1, or if the index has no items.
    """
    if count < 1:
        raise UsageError(f"the number of outliers is {count}, but must be at least 1")
    with neighbour_graph(snapshots, k, progress) as graph:
        scores, distances = outlier_scores(graph)
        order = np.lexsort((np.arange(len(scores)), -scores))[:count].tolist()
        return [
            Finding(
                graph.collection.member(place),
                {"score": float(scores[place]), "distance": float(distances[place])},
                graph.evidence(place, SHOWN),
            )
            for place in order
        ]


def outlier_scores(graph: Graph) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the score of each item, and the mean distance from each item to its neighbours: (n,) float64 each."""
    known = graph.places >= 0
    total = np.where(known, graph.distances, 0).sum(1)
    distances = total / np.maximum(known.sum(1), 1)
    around = np.where(known, distances[graph.places], 0).sum(1) / np.maximum(known.sum(1), 1)
    least = max(COPIES * float(np.median(distances)), 1e-9)  # a few copies shall not count as dense
    return (distances + least) / (around + least), distances
