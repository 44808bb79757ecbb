"""Chooses a few items that represent all: the greedy k-center algorithm (Gonzalez 1985).

Each step chooses the item with the largest distance to its nearest chosen item. The radius is the largest distance
from any item to its nearest chosen item. It is at most twice the smallest possible radius for the same number of chosen
items. No polynomial-time method can guarantee a better factor, unless P = NP. Since items are chosen one by one, a
choice of 10 items begins with the choice of 9.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simsearch.common.distances import squared_norms
from simsearch.common.progress import Progress, no_progress
from simsearch.curation.graph import Collection, Finding
from simsearch.errors import UsageError
from simsearch.storage.protocols import Searchable

BLOCK = 2048
"""Number of items whose features are read and compared at once."""


def diverse(snapshots: Searchable, count: int, progress: Progress = no_progress) -> list[Finding]:
    """Returns `count` items that represent the index, in the order in which they were chosen.

    The first item is the one nearest to the mean of all features. Fewer than `count` items are returned if every other
    item has the same features as a chosen one.
    snapshots: the index to examine, such as `engine.snapshots` of an `Engine`.
    Facts of each finding: `radius`, the largest distance from any item to the nearest of the items chosen so far.
    Raises UsageError if `count` is less than 1 or the index has no items.
    """
    if count < 1:
        raise UsageError(f"the number of items to choose is {count}, but must be at least 1")
    with snapshots.reading() as reader:
        collection = Collection.read(snapshots, reader)
        n = len(collection.items)
        count = min(count, n)
        spans = [(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]
        blocks = (collection.features(*span).astype(np.float64).sum(0) for span in spans)
        point = np.sum(list(blocks), axis=0) / n  # the first item is the one nearest to the mean
        nearest = np.full(n, np.inf)
        chosen: list[int] = []
        radii: list[float] = []
        while len(chosen) < count:
            place = int(_distances(collection, spans, point).argmin()) if not chosen else int(nearest.argmax())
            if chosen and nearest[place] == 0:  # every other item equals a chosen one
                break
            chosen.append(place)
            point = collection.features(place, place + 1)[0].astype(np.float64)
            nearest = np.minimum(nearest, _distances(collection, spans, point))
            nearest[place] = 0
            radii.append(float(nearest.max()))
            progress(len(chosen), count)
        return [
            Finding(collection.member(place), {"radius": radius}) for place, radius in zip(chosen, radii, strict=True)
        ]


def _distances(collection: Collection, spans: list[tuple[int, int]], point: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the Euclidean distance from the features of each item to `point`: (n,) float64.

    spans: ranges (start, stop) that cover all items; to save memory, one range is read at a time.
    point: (D,), where D is the dimension of the features.
    """
    parts = [np.sqrt(squared_norms(collection.features(*span) - point.astype(np.float32))) for span in spans]
    return np.concatenate(parts).astype(np.float64)
