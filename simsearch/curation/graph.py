"""The exact nearest neighbours of all items of an index: the basis of most other modules in this package.

Letters: n items in the order of their ids, k neighbours, D dimension.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common.progress import Progress, no_progress
from simsearch.errors import UsageError
from simsearch.search.duplicates import Member
from simsearch.storage.protocols import ItemReader, Searchable, SearchSnapshot
from simsearch.storage.reader import Item

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK = 256
"""Items that are searched for at once."""


@dataclass(frozen=True)
class Finding:
    """An item that was found, the facts about it, and other items as evidence, nearest first."""

    member: Member
    facts: Mapping[str, Any]
    evidence: Sequence[Member] = field(default=())


@dataclass(frozen=True)
class Collection:
    """All items of a snapshot of an index.

    items: ordered by id. rows: (n,) the row of each item's features. order: (n,) positions in `items`, by ascending
    row. generation: that of the index.
    """

    snapshot: SearchSnapshot
    items: Sequence[Item]
    rows: NDArray[np.int64]
    order: NDArray[np.int64]
    generation: int = 0

    @classmethod
    def read(cls, snapshots: Searchable, reader: ItemReader) -> Collection:
        """Reads all items. Raises UsageError if there are none."""
        items = list(reader.items())
        if not items:
            raise UsageError("the index has no items", hint="simsearch build SOURCE")
        rows = np.array([item.row for item in items], np.int64)
        return cls(snapshots.current(reader), items, rows, np.argsort(rows), reader.state("generation"))

    def member(self, place: int, distance: float = 0.0, own: bool = True) -> Member:
        """Returns the item at a place. distance: to the item beside which it is shown. own: see `Member`."""
        item = self.items[place]
        source = self.snapshot.sources[item.source]
        return Member(item, source.display(item.path), distance, source, own)

    def features(self, start: int, stop: int) -> NDArray[np.float32]:
        """Reads the features of the items in places `start` to `stop`: (stop - start, D)."""
        return self.snapshot.flat.read(self.rows[start:stop]).astype(np.float32)

    def search(
        self, queries: NDArray[np.float32], k: int, without: Sequence[int] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Returns the places of the k items nearest to each of (nq, D) queries and their distances, both (nq, k).

        without: for each query, the place of an item to leave out. Missing neighbours have place -1 and an infinite
        distance. Ties are ordered by id.
        """
        found = self.snapshot.flat.search(queries, k + (without is not None), self.snapshot.live)
        ascending = self.rows[self.order]
        places, distances = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), np.inf)
        for number, near in enumerate(found):
            at = self.order[np.searchsorted(ascending, near.rows)]
            keep = at != without[number] if without is not None else np.ones(len(at), bool)
            at, away = at[keep], near.distances[keep]
            nearest = np.lexsort((at, away))[:k]
            places[number, : len(nearest)], distances[number, : len(nearest)] = at[nearest], away[nearest]
        return places, distances


@dataclass(frozen=True)
class Graph:
    """The k nearest other items of each item. places, distances: (n, k); -1 and infinite for missing neighbours."""

    collection: Collection
    places: NDArray[np.int64]
    distances: NDArray[np.float64]

    def weights(self) -> NDArray[np.float32]:
        """Returns the weight of each neighbour, (n, k): exp(-(d / m)²) for distance d, m the item's mean distance."""
        known = self.places >= 0
        distances = np.where(known, self.distances, 0)
        mean = np.maximum(distances.sum(1, keepdims=True) / np.maximum(known.sum(1, keepdims=True), 1), 1e-12)
        return np.where(known, np.exp(-((distances / mean) ** 2)), 0).astype(np.float32)

    def evidence(self, place: int, count: int) -> list[Member]:
        """Returns up to `count` nearest neighbours of the item at `place`."""
        near = zip(self.places[place, :count].tolist(), self.distances[place, :count].tolist(), strict=True)
        return [self.collection.member(other, distance) for other, distance in near if other >= 0]


@contextlib.contextmanager
def neighbour_graph(snapshots: Searchable, k: int, progress: Progress = no_progress) -> Iterator[Graph]:
    """Yields the graph of the exact k nearest other items of each item. Raises UsageError for an empty index or k < 1.

    progress: called with the number of items done and of all items.
    """
    if k < 1:
        raise UsageError(f"the number of neighbours is {k}", hint="1 or more")
    with snapshots.reading() as reader:
        collection = Collection.read(snapshots, reader)
        n = len(collection.items)
        k = min(k, max(1, n - 1))
        places, distances = np.empty((n, k), np.int64), np.empty((n, k))
        for start in range(0, n, BLOCK):
            stop = min(start + BLOCK, n)
            queries = collection.features(start, stop)
            places[start:stop], distances[start:stop] = collection.search(queries, k, range(start, stop))
            progress(stop, n)
        yield Graph(collection, places, distances)
