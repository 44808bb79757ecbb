"""Items that are unlike all others: far from their neighbours, which are near to theirs.

The score is the local one of LOF (Breunig et al. 2000) in its simplified form: the mean distance to an item's k nearest
neighbours over the mean of the same for these neighbours. About 1 is usual, wherever an item lies; pictures with much
detail, whose distances are all large, are no outliers for that.
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
"""Added to both distances of the score, as a share of the median: copies of a picture are no dense neighbourhood."""


def outliers(
    snapshots: Searchable, count: int = 20, k: int = NEIGHBOURS, progress: Progress = no_progress
) -> list[Finding]:
    """Returns the `count` items with the highest scores, the highest first, with their nearest neighbours.

    Facts: score, and distance, the mean distance to the k nearest neighbours. Raises UsageError.
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
    least = max(COPIES * float(np.median(distances)), 1e-9)  # copies of one picture are no dense neighbourhood
    return (distances + least) / (around + least), distances
