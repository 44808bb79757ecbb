"""Finds the exact nearest neighbours of each item of an index, for most other modules of this package.

The *place* of an item is its position, from 0, when all items are sorted by id.
Shape letters: n items, k neighbours of each, D dimension of the features.
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
"""Number of items whose neighbours are searched for at once."""


@dataclass(frozen=True)
class Finding:
    """One result of a curation function.

    member: the item that was found.
    facts: what was found out about the item: a mapping from names, such as "score", to values.
    evidence: other items that explain the result, such as the neighbours of `member`, the nearest first; empty if none
    are needed.
    """

    member: Member
    facts: Mapping[str, Any]
    evidence: Sequence[Member] = field(default=())


@dataclass(frozen=True)
class Collection:
    """All items of an index at one moment, and access to their features.

    snapshot: reads and searches the features.
    items: all items, sorted by id.
    rows: (n,) the row of each item in the file of features.
    order: (n,) the places of the items, in the order of their rows.
    generation: the index's counter of changes, as it was when the items were read.
    """

    snapshot: SearchSnapshot
    items: Sequence[Item]
    rows: NDArray[np.int64]
    order: NDArray[np.int64]
    generation: int = 0

    @classmethod
    def read(cls, snapshots: Searchable, reader: ItemReader) -> Collection:
        """Reads all items that `reader` sees. Raises UsageError if there are none.

        snapshots: the index. reader: the open reader that `snapshots.reading()` gives.
        """
        items = list(reader.items())
        if not items:
            raise UsageError("the index has no items", hint="engine.add(SOURCE)", shell_hint="simsearch build SOURCE")
        rows = np.array([item.row for item in items], np.int64)
        return cls(snapshots.current(reader), items, rows, np.argsort(rows), reader.state("generation"))

    def member(self, place: int, distance: float = 0.0, own: bool = True) -> Member:
        """Returns the item at a place, with its path and source, for display.

        distance: if this item is shown as evidence for another item, the distance to that item.
        own: False if this item belongs to another index, which the user's index is compared with.
        """
        item = self.items[place]
        source = self.snapshot.sources[item.source]
        return Member(item, source.display(item.path), distance, source, own)

    def features(self, start: int, stop: int) -> NDArray[np.float32]:
        """Reads the features of the items at places `start` to `stop - 1`: (stop - start, D) float32."""
        return self.snapshot.flat.read(self.rows[start:stop]).astype(np.float32)

    def search(
        self, queries: NDArray[np.float32], k: int, without: Sequence[int] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Returns the places of the k items nearest to each query, and the distances to them: both (nq, k).

        queries: (nq, D). without: for each query, the place of an item to leave out, such as the query's own; None to
        leave out nothing.
        If there are fewer than k items, the rest of a row has place -1 and infinite distance. Items at the same
        distance are sorted by id.
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
    """The k nearest other items of each item.

    places: (n, k), places of the neighbours, nearest first; -1 where a neighbour is missing.
    distances: (n, k), Euclidean distances to the neighbours; infinite where a neighbour is missing.
    """

    collection: Collection
    places: NDArray[np.int64]
    distances: NDArray[np.float64]

    def weights(self) -> NDArray[np.float32]:
        """Returns a weight for each neighbour of each item: exp(-(d / m)²), as (n, k) float32.

        d is the distance to the neighbour, m the mean distance to all neighbours of the item. Missing neighbours have
        weight 0.
        """
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
    """Returns a context manager that gives a `Graph`: the exact k nearest other items of each item.

    The index stays open for reading until the block ends.
    snapshots: the index to examine, such as `engine.snapshots` of an `Engine`.
    progress: called with the number of items searched so far and the number of all items.
    Raises UsageError if the index has no items or if k is less than 1.
    """
    if k < 1:
        raise UsageError(f"the number of neighbours is {k}, but must be at least 1")
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
