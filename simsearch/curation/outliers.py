"""Finds items that are unlike all others: much farther from their neighbours than these are from their own.

The score is a simplified local outlier factor (LOF, Breunig et al. 2000): the mean distance from an item to its k
nearest neighbours, divided by the average of the same mean distance over those neighbours. A usual item scores about 1
everywhere, so detailed pictures, which are far from all others, are not outliers for that reason.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simsearch.common.progress import Progress, no_progress
from simsearch.curation.graph import Finding, Graph, neighbour_graph
from simsearch.errors import UsageError
from simsearch.storage.protocols import Searchable

NEIGHBOURS, SHOWN = 10, 5

COPIES = 0.5
"""Share of the median distance that is added to both distances of a score, so that copies do not inflate scores."""


def outliers(
    snapshots: Searchable, count: int = 20, k: int = NEIGHBOURS, progress: Progress = no_progress
) -> list[Finding]:
    """Returns the `count` items with the highest scores, the highest first, with their nearest neighbours.

    Facts of each finding: score, and distance, the mean distance to the k nearest neighbours. Raises UsageError.
    """
    if count < 1:
        raise UsageError(f"the number of outliers is {count}", hint="1 or more")
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
    """Returns the score of each item and the mean distance to its neighbours, (n,) each."""
    known = graph.places >= 0
    total = np.where(known, graph.distances, 0).sum(1)
    distances = total / np.maximum(known.sum(1), 1)
    around = np.where(known, distances[graph.places], 0).sum(1) / np.maximum(known.sum(1), 1)
    least = max(COPIES * float(np.median(distances)), 1e-9)  # a few copies are not a dense neighbourhood
    return (distances + least) / (around + least), distances
