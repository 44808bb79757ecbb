"""One search over one snapshot of an index: from query vectors to matches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from simsearch.errors import UsageError
from simsearch.search.feedback import expanded
from simsearch.search.options import SearchOptions
from simsearch.search.ranking import Neighbours
from simsearch.search.results import Match, Matches
from simsearch.search.similarity import Scale
from simsearch.storage.filters import Where, conditions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.storage.protocols import (
        ApproximateSearch,
        FeatureReader,
        ItemReader,
        KnownRows,
        SearchSnapshot,
        VectorSearch,
    )
    from simsearch.storage.reader import Item

NEAR_IDENTICAL = 0.25
"""Largest distance at which the option `dedup` drops a match; in units of the median distance of random pairs.

Measured with AlexNet trained on labels alone, on 100 of its training images. Nine in ten copies (saved as JPEG at
quality 50, scaled to 75 %, cropped by 5 % or brightened by 10 %) are closer than 0.23 to the original image; different
images are all more than 0.47 apart.
"""


MOST_NEIGHBOURS = 1 << 28
"""Largest number of ids that one call of `neighbours` returns; with the distances they take 4 GiB."""


@dataclass(frozen=True)
class Searcher:
    """Searches one snapshot of an index.

    reader: reads the items.
    snapshot: has the exact search and the sources of the items.
    shards: reads features by row.
    scale: returns the scale that turns distances into similarities.
    median: the median distance of random pairs of items. For the option `dedup`, items that are at most NEAR_IDENTICAL
    times this distance apart are near-identical.
    structure: an approximate search, used unless a search must be exact; None if all searches are exact.
    """

    reader: ItemReader
    snapshot: SearchSnapshot
    shards: FeatureReader
    scale: Callable[[], Scale]
    median: float
    structure: ApproximateSearch | None = None

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        left_out: Sequence[Sequence[int]],
        options: SearchOptions,
    ) -> list[Matches]:
        """Returns the k nearest matches of each of nq queries.

        queries: (nq, v, D), v vectors for each query; the distance of a match is its distance to the nearest of them.
        left_out: for each query, the rows that must not be matches.
        Raises UsageError for invalid values of k and of options.
        """
        k = checked_k(k)
        farthest = _checked_distance(options.get("max_distance"))
        least = _checked_similarity(options.get("min_similarity"))
        answers, scale = [Matches() for _ in queries], self.scale()
        if expand := options.get("expand"):
            queries = self._expanded(queries, left_out, expand, options, answers)
        permitted = self._permitted(options.get("where"))
        available = self.snapshot.flat.rows if permitted is None else len(permitted)
        k = min(k, max(1, available))
        pending = list(range(len(queries)))
        width = k + max((len(rows) for rows in left_out), default=0)
        while pending:
            flat = queries[pending].reshape(-1, self.shards.dimension)
            exact = bool(options.get("exact")) or not self._approximate(width, permitted)
            found = _nearest_rows(self.snapshot.flat, self.structure, flat, width, permitted, exact)
            unfinished = []
            for place, number in enumerate(pending):
                answers[number].exact &= exact
                near = merge(
                    found[place * queries.shape[1] : (place + 1) * queries.shape[1]],
                    left_out[number],
                    width >= available,
                )
                items = self.reader.items_at(near.rows.tolist())
                order = sorted(
                    zip(near.distances.tolist(), near.rows.tolist(), strict=True),
                    key=lambda pair: (pair[0], items[pair[1]].id),
                )
                if options.get("dedup"):
                    order = self._distinct(order, items, k)
                if len(order) < k and width < available:
                    unfinished.append(number)
                    continue
                kept = [(d, row) for d, row in order[:k] if farthest is None or d <= farthest]
                answers[number].extend(m for m in self._matches(kept, items, scale) if m.similarity >= least)
            # Too few matches were left after merging variants and dropping duplicates: search for more candidates.
            pending, width = unfinished, min(available, 4 * width)
        return answers

    def neighbours(
        self, queries: NDArray[np.float32], k: int, where: Where | None, exact: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Returns the ids of the k items nearest to each of (nq, D) queries, and their distances, both (nq, k).

        If there are fewer than k items, the remaining ids are -1 and the remaining distances inf.
        where, exact: as for `Engine.search`.
        Raises UsageError if k is invalid or if more than MOST_NEIGHBOURS ids are asked for.
        """
        k = checked_k(k)
        if k * len(queries) > MOST_NEIGHBOURS:
            raise UsageError(
                f"{k:,} neighbours of {len(queries):,} vectors are too many for one answer",
                hint=f"the index has {self.reader.count():,} items; ask for fewer neighbours or fewer vectors at once",
            )
        permitted = self._permitted(where)
        found = _nearest_rows(self.snapshot.flat, self.structure, queries, k, permitted, exact)
        several = [each.rows for each in found]
        known = (
            self.reader.ids_at(np.unique(np.concatenate(several)) if len(several) > 1 else several[0]) if found else {}
        )
        return _nearest_ids(found, k, lambda rows: np.array([known[row] for row in rows.tolist()], np.int64))

    def _permitted(self, where: Where | None) -> NDArray[np.int64] | None:
        """Returns the rows of the items that meet the conditions; None for all rows."""
        wanted = conditions(where)
        return self.reader.rows(wanted) if wanted else self.snapshot.live

    def _approximate(self, k: int, permitted: NDArray[np.int64] | None) -> bool:
        return self.structure is not None and self.structure.can_answer(self.snapshot.flat, k, permitted)

    def _expanded(
        self,
        queries: NDArray[np.float32],
        left_out: Sequence[Sequence[int]],
        count: int,
        options: SearchOptions,
        answers: list[Matches],
    ) -> NDArray[np.float32]:
        """Returns the (nq, v, D) queries, each averaged with its first `count` matches.

        All v vectors of a query are averaged with the same matches.
        answers: the `Matches` of each query. Their `exact` is set to False if the first matches come from an
        approximate search.
        """
        if not isinstance(count, int | np.integer) or isinstance(count, bool) or count < 1:
            raise UsageError(f"expand is {count!r}, but must be a whole number of at least 1")
        first: SearchOptions = {"where": options.get("where"), "exact": bool(options.get("exact"))}
        results = []
        found = self.search(queries, count, left_out, first)
        for query, matches, answer in zip(queries, found, answers, strict=True):
            answer.exact = matches.exact
            rows = np.array([self.reader.item(match.id).row for match in matches], np.int64)
            near = self.shards.read(rows).astype(np.float32) if len(rows) else np.zeros((0, query.shape[1]), np.float32)
            results.append([expanded(variant, near) for variant in query])
        return np.array(results, np.float32)

    def _matches(self, order: Sequence[tuple[float, int]], items: Mapping[int, Item], scale: Scale) -> Iterator[Match]:
        """Yields the matches for (distance, row) pairs, which are sorted nearest first. items: by row."""
        shares = scale.similarities([distance for distance, _ in order])
        for rank, ((distance, row), share) in enumerate(zip(order, shares, strict=True), 1):
            item = items[row]
            path = self.snapshot.sources[item.source].display(item.path)
            yield Match(rank, item.id, path, item.label, distance, share, item.metadata, item.path)

    def _distinct(self, order: list[tuple[float, int]], items: dict[int, Item], k: int) -> list[tuple[float, int]]:
        """Returns the first k (distance, row) pairs, without items that are near-identical to an earlier item."""
        same = NEAR_IDENTICAL * self.median
        kept: list[tuple[float, int]] = []
        vectors: list[NDArray[np.float32]] = []
        digests: set[bytes] = set()
        for distance, row in order:
            if len(kept) == k:
                break
            vector = self.shards.read(np.array([row]))[0].astype(np.float32)
            if items[row].digest in digests or any(np.linalg.norm(other - vector) <= same for other in vectors):
                continue
            kept.append((distance, row))
            vectors.append(vector)
            digests.add(items[row].digest)
        return kept


def known_neighbours(
    known: KnownRows, queries: NDArray[np.float32], k: int, exact: bool
) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
    """Returns what `Searcher.neighbours` returns for all items, without the index's database.

    Returns None if too many neighbours are asked for or if the index is damaged; `Searcher.neighbours` then says so.
    """
    k = checked_k(k)
    if k * len(queries) > MOST_NEIGHBOURS:
        return None
    found = _nearest_rows(known.flat, known.structure, queries, k, known.live, exact)
    ids, distances = _nearest_ids(found, k, known.ids.__getitem__)
    return None if (ids[np.isfinite(distances)] < 0).any() else (ids, distances)


def _nearest_rows(
    flat: VectorSearch,
    structure: ApproximateSearch | None,
    queries: NDArray[np.float32],
    k: int,
    permitted: NDArray[np.int64] | None,
    exact: bool,
) -> list[Neighbours]:
    """Returns the k permitted rows nearest to each of (nq, D) queries, approximately if `structure` can answer.

    exact: True for an exact search in any case.
    """
    if structure is None or exact or not structure.can_answer(flat, k, permitted):
        return flat.search(queries, k, permitted)
    return structure.search(flat, queries, k, permitted)


def _nearest_ids(
    found: Sequence[Neighbours], k: int, ids_of: Callable[[NDArray[np.int64]], NDArray[np.int64]]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns the ids and distances of the k nearest of each query's neighbours, both (nq, k), as `neighbours` does.

    ids_of: returns the ids of the items in (n,) rows.
    """
    ids, distances = np.full((len(found), k), -1, np.int64), np.full((len(found), k), np.inf)
    for number, near in enumerate(found):
        named = ids_of(near.rows)
        order = np.lexsort((named, near.distances))[:k]
        ids[number, : len(order)], distances[number, : len(order)] = named[order], near.distances[order]
    return ids, distances


def _checked_distance(farthest: float | None) -> float | None:
    """Returns the largest distance of a match; None for no limit. Raises UsageError unless it is None or at least 0."""
    if farthest is not None and not isinstance(farthest, int | float | np.number):
        raise UsageError(f"max_distance is {farthest!r}, not a number")
    if farthest is not None and not farthest >= 0:
        raise UsageError(f"max_distance must be a number that is not negative, not {farthest}")
    return farthest


def _checked_similarity(least: float | None) -> float:
    """Returns the smallest similarity of a match, 0 for None. Raises UsageError unless it is a number from 0 to 1."""
    if least is None:
        return 0.0
    if not isinstance(least, int | float | np.number) or isinstance(least, bool) or not 0 <= least <= 1:
        raise UsageError(f"min_similarity is {least!r}, not a number from 0 to 1")
    return float(least)


def checked_k(k: int) -> int:
    """Returns k, the number of matches, as an int. Raises UsageError unless it is a whole number of at least 1."""
    if not isinstance(k, int | np.integer) or isinstance(k, bool):
        raise UsageError(f"k is {k!r}, not a whole number")
    if k < 1:
        raise UsageError(f"k is {k}, but must be at least 1")
    return int(k)


def merge(variants: Sequence[Neighbours], left_out: Sequence[int], complete: bool) -> Neighbours:
    """Merges the neighbours of a query's vectors: keeps the smallest distance of each row, drops the rows `left_out`.

    variants: for each of the query's vectors, a list of its neighbours, nearest first.
    complete: True if each list has all rows. False if each list has only the rows nearest to its vector. Each
    distance that is missing from a list is then unknown, but not smaller than the last distance in the list. So rows
    are dropped if their smallest known distance is larger than the smallest of the lists' last distances.
    """
    if len(variants) == 1:
        near = variants[0]
        keep = slice(None) if not left_out else ~np.isin(near.rows, left_out)
        return Neighbours(near.rows[keep], near.distances[keep])
    best: dict[int, float] = {}
    for rows, distances in variants:
        for row, distance in zip(rows.tolist(), distances.tolist(), strict=True):
            best[row] = min(distance, best.get(row, np.inf))
    reach = np.inf if complete else min((float(d[-1]) for _, d in variants if len(d)), default=np.inf)
    best = {row: distance for row, distance in best.items() if distance <= reach and row not in left_out}
    order = sorted(best, key=lambda row: best[row])
    return Neighbours(np.array(order, np.int64), np.array([best[row] for row in order]))
