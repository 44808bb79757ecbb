"""A map: the items of an index on a plane, similar ones side by side, in clusters with names.

Positions come from the exact nearest neighbours (`simsearch.curation.layout`), clusters from the positions
(`simsearch.curation.hills`), names from labels or from a classifier (`simsearch.curation.cluster_names`).

Shape letters: n items, k neighbours of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from simsearch.common.progress import Progress, no_progress
from simsearch.curation import layout
from simsearch.curation.graph import neighbour_graph
from simsearch.curation.hills import find_hills
from simsearch.errors import UsageError
from simsearch.search.duplicates import Member
from simsearch.storage.export import MapColumns
from simsearch.storage.protocols import OpenIndex, Searchable
from simsearch.storage.stored_map import NamedCluster, StoredMap, content_key
from simsearch.storage.stored_map import write as write_map

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST = 10
"""Smallest number of items for a map."""

EXPORTED = 15
"""Number of nearest neighbours of each item that an exported file contains."""


@dataclass(frozen=True)
class Cluster:
    """A cluster of a map.

    name: unique on the map. size: number of items.
    source: the origin of the name: "labels", "guesses" (of a classifier) or "number".
    share: how well the name fits, from 0 to 1. For labels, the fraction of the labelled items whose label is in the
    name; for guesses, the probability of the class or classes in the name; None for a number.
    """

    name: str
    size: int
    source: str = "number"
    share: float | None = None

    @property
    def note(self) -> str:
        """A text that tells people how well the name fits, such as "80% of the labels"; empty for a number."""
        if self.share is None:
            return ""
        kind = "of the labels" if self.source == "labels" else "probable to the classifier"
        return f"{self.share:.0%} {kind}"


@dataclass(frozen=True)
class Neighbourhood:
    """The items of an index, their nearest neighbours and their initial positions, as `read_neighbours` returns them.

    members: the items, sorted by id.
    places, distances: (n, k), the nearest other items as indices into `members`, and the distances to them.
    start: (n, 2), the initial positions of the layout.
    generation: the index's counter of changes, as it was when the items were read.
    """

    members: Sequence[Member]
    places: NDArray[np.int64]
    distances: NDArray[np.float64]
    start: NDArray[np.float64]
    generation: int = 0


@dataclass(frozen=True)
class ItemMap:
    """A map of n items.

    members: the items, sorted by id.
    positions: (n, 2) float32, with mean 0.
    cluster_ids: (n,) int32, the index of each item's cluster in `clusters`.
    clusters: the largest first.
    places, distances: (n, k), the nearest other items as indices into `members`, and the distances to them.
    generation: the index's counter of changes, as it was when the items were read.
    """

    members: Sequence[Member]
    positions: NDArray[np.float32]
    cluster_ids: NDArray[np.int32]
    clusters: Sequence[Cluster]
    places: NDArray[np.int64]
    distances: NDArray[np.float64]
    generation: int = 0

    @property
    def ids(self) -> NDArray[np.int64]:
        """The items' ids: (n,), ascending."""
        return np.array([member.item.id for member in self.members], np.int64)

    def columns(self) -> MapColumns:
        """Returns the map as columns, which `export_parquet` adds to the table of the index's items.

        Each item has its position, its cluster and its `EXPORTED` nearest neighbours.
        """
        names = [cluster.name for cluster in self.clusters]
        near, away = self.places[:, :EXPORTED], self.distances[:, :EXPORTED]
        return MapColumns(self.ids, self.positions, self.cluster_ids, names, near, away)

    def facts(self, seed: int) -> dict[str, str]:
        """Returns facts about how the map was made, as texts for people; the keys are the names of the facts.

        seed: the random seed that the map was drawn with.
        """
        sources = {cluster.source for cluster in self.clusters}
        said = {"labels": "labels", "guesses": "guesses of the classifier", "number": "numbers"}
        return {
            "pictures": f"{len(self.members):,}",
            "positions": f"t-SNE of exact neighbours, seed {seed}",
            "names": ", ".join(said[source] for source in said if source in sources),
        }

    def stored(self, facts: dict[str, str]) -> StoredMap:
        """Returns the part of the map that is stored with the index. facts: the result of the method `facts`."""
        contents = np.array([content_key(member.item.digest) for member in self.members], np.uint64)
        named = [NamedCluster(cluster.name, cluster.note) for cluster in self.clusters]
        return StoredMap(self.ids, contents, self.positions, self.cluster_ids, named, self.generation, facts)


def read_neighbours(
    snapshots: Searchable, k: int = layout.NEIGHBOURS, seed: int = 0, progress: Progress = no_progress
) -> Neighbourhood:
    """Returns all items of an index, the exact k nearest neighbours of each, and initial positions for `draw_map`.

    snapshots: the index to examine, such as `engine.snapshots` of an `Engine`.
    seed: random seed of the initial positions. progress: called with the number of items searched so far and the number
    of all items.
    Raises UsageError if there are fewer items than `LEAST`, and MissingExtraError if openTSNE is not installed.
    """
    layout.check_installed()
    with snapshots.reading() as reader:
        check_size(reader.count())
    with neighbour_graph(snapshots, k, progress) as graph:
        collection = graph.collection
        check_size(len(collection.items))
        members = [collection.member(place) for place in range(len(collection.items))]
        return Neighbourhood(
            members, graph.places, graph.distances, layout.start_positions(collection, seed), collection.generation
        )


def check_size(count: int) -> None:
    """Raises UsageError if `count` items are too few for a map."""
    if count < LEAST:
        raise UsageError(
            f"the index has {count} {'item' if count == 1 else 'items'}, and a map needs at least {LEAST}",
            hint="engine.add(SOURCE) adds more",
            shell_hint="simsearch build SOURCE adds more",
        )


def draw_map(
    near: Neighbourhood, clusters: int | None = None, seed: int = 0, progress: Progress = no_progress
) -> ItemMap:
    """Returns a map whose clusters have numbers as names; `cluster_names.name_clusters` can give them better names.

    near: the result of `read_neighbours`. seed: random seed of the layout.
    clusters: the largest number of clusters; None for all prominent ones.
    progress: called with the number of iterations done so far and the number of all iterations.
    Raises UsageError if `clusters` is less than 1, and MissingExtraError if openTSNE is not installed.
    """
    if clusters is not None and clusters < 1:
        raise UsageError(f"the number of clusters is {clusters}, but must be at least 1")
    positions = layout.lay_out(near.places, near.distances, near.start, seed, progress)
    found = find_hills(positions, clusters)
    sizes = np.bincount(found).tolist()
    numbered = [Cluster(f"cluster {number}", size) for number, size in enumerate(sizes, 1)]
    return ItemMap(near.members, positions, found, numbered, near.places, near.distances, near.generation)


def keep(opened: OpenIndex, drawn: ItemMap, seed: int = 0) -> StoredMap:
    """Stores a map in the folder of its index, where the web page finds it, and returns the map in its stored form.

    opened: the index. For an index without a folder (a Milvus collection), nothing is stored.
    seed: the random seed that the map was drawn with. Raises OSError if the file cannot be written.
    """
    stored = drawn.stored(drawn.facts(seed))
    if opened.folder is not None:
        write_map(opened.folder, stored)
    return stored


def representatives(positions: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Returns at most `count` items that are spread over the map, as row numbers of `positions`.

    positions: (n, 2), one row for each item. The plane is divided into 4 squares, in the next steps into 16, 64, … Each
    step chooses, for every square that has items but no chosen one, the item nearest to the square's centre. The result
    has the items in the order of the steps, so its first items cover the map coarsely and later ones more finely. The
    items of one step are in a fixed random order, so a result that ends within a step covers the map evenly, too.
    """
    n = len(positions)
    extent = max(float(np.ptp(positions, axis=0).max()), 1e-9)
    scaled = (positions - positions.min(0)) / extent  # 0 to 1
    chosen = np.zeros(n, bool)
    found: list[NDArray[np.int64]] = []
    for level in range(1, 17):
        side = 1 << level
        cell = np.minimum((scaled * side).astype(np.int64), side - 1)
        number = cell[:, 1] * side + cell[:, 0]
        taken = np.unique(number[chosen])
        away = ((scaled * side - cell - 0.5) ** 2).sum(1)
        order = np.lexsort((away, number))
        first = order[np.unique(number[order], return_index=True)[1]]
        new = first[~np.isin(number[first], taken)]
        chosen[new] = True
        found.append(np.random.default_rng(level).permutation(new))
        if chosen.sum() >= min(count, n):
            break
    found.append(np.flatnonzero(~chosen))  # items too near to others to be in a square of their own
    return np.concatenate(found)[:count]
