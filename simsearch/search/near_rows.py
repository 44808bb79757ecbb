"""Links rows that are near each other, without measuring all pairs.

The features are projected on their principal components, which never lengthens a distance. So two rows whose
projections are farther apart than the threshold need no comparison. The rows are sorted by their first component, and
each row is compared only with rows whose first component differs by less than the threshold. The remaining pairs are
measured in float64. This finds the same links as measuring all pairs. It is faster, but the time still grows with the
square of the number of rows.

If there are more than EXACT different rows, some links may be missed. FAISS then divides the rows into inverted lists,
and each row is compared only with its nearest rows in the lists nearest to it. The time grows with the power 1.5 of the
number of rows. Memory grows linearly in both cases.

A place is the position of a row in the array of rows to link.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from simsearch.common import pca
from simsearch.common.distances import squared_norms
from simsearch.common.lazy import LazyModule
from simsearch.common.progress import Progress

if TYPE_CHECKING:
    import faiss
    from numpy.typing import NDArray

    from simsearch.storage.protocols import VectorSearch
else:
    faiss = LazyModule("faiss")

COMPONENTS = 64
"""Number of principal components that features are projected on."""

SAMPLE = 8192
"""Number of rows that the principal components are computed from."""

BLOCK, WINDOW, PAIRS = 512, 8192, 1024
"""BLOCK rows at a time are compared with up to WINDOW other rows. Up to PAIRS pairs at a time are measured."""

EXACT = 50_000
"""Up to this number of different rows, all pairs of projected features are compared."""

NEIGHBOURS, PROBES = 32, 16
"""If there are more than EXACT different rows, each row is paired with its NEIGHBOURS nearest rows in PROBES lists."""


NEAREST, JUDGED = 8, 64
"""A `Judge` decides about the pairs of each row with its NEAREST nearest rows, up to JUDGED pairs in one call."""

_MEASURED = 1 << 16

Judge = Callable[["NDArray[np.int64]", "NDArray[np.float64]"], "NDArray[np.bool_]"]
"""A function that decides which pairs to link.

It takes the places of pairs, (n, 2), and their distances, (n,), and returns True for each pair to link, (n,).
"""


class JoinedRows:
    """The rows of several indexes, numbered consecutively. starts: the number of the first row of each index."""

    def __init__(self, parts: Sequence[VectorSearch]) -> None:
        self._parts = parts
        self.starts = np.cumsum([0, *(part.rows for part in parts[:-1])])

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """Reads the given rows, in this order: (n, D) float16."""
        if len(self._parts) == 1:
            return self._parts[0].read(rows)
        part_of = np.searchsorted(self.starts, rows, side="right") - 1
        order = np.argsort(part_of, kind="stable")
        pieces = [
            part.read(rows[part_of == number] - start)
            for number, (part, start) in enumerate(zip(self._parts, self.starts, strict=True))
        ]
        return np.concatenate(pieces)[np.argsort(order, kind="stable")]


def linked(
    flat: JoinedRows,
    rows: NDArray[np.int64],
    reach: float,
    progress: Progress,
    exact: bool,
    judge: Judge | None = None,
) -> NDArray[np.int64]:
    """Groups rows that are linked directly or through other rows of the group; identical rows are always linked.

    Returns a number for each row, (n,). It is the same for all rows of a group: the lowest place in the group.
    reach: the largest distance of a pair that may be linked.
    progress: called with the number of rows compared so far and the number of different rows.
    exact: True to compare all pairs even if there are more than EXACT different rows.
    judge: decides which pairs within `reach` are linked; None to link all these pairs. The judge is asked about the
    nearest pairs first. It is asked about a pair only if one row of the pair is among the NEAREST rows nearest to the
    other row, by the distances between projections.
    """
    links = _Links(len(rows))
    if len(rows) < 2:
        return links.roots()
    random = np.random.default_rng(0)
    sample = np.sort(random.choice(rows, min(SAMPLE, len(rows)), replace=False))
    onto = pca.fit_pca(flat.read(sample), COMPONENTS)
    z = np.empty((len(rows), onto.axes.shape[1]), np.float32)
    first: dict[bytes, int] = {}
    for start in range(0, len(rows), BLOCK):
        features = flat.read(rows[start : start + BLOCK])
        z[start : start + BLOCK] = onto(features)
        for place, row in enumerate(features, start):  # identical rows are linked here
            links.join(first.setdefault(hashlib.blake2b(row.tobytes(), digest_size=16).digest(), place), place)
    unique = np.fromiter(first.values(), np.int64)
    rounding = 1e-5 * float(np.linalg.norm(onto.mean) + np.sqrt(squared_norms(z).max()))
    farthest = reach * (1 + 1e-4) + rounding
    pairs = _all_near if exact or len(unique) <= EXACT else _listed_near
    if judge is None:
        for done, found in pairs(z, unique, farthest):
            _measure(flat, rows, found, reach, links)
            progress(done, len(unique))
        return links.roots()
    nearest = [np.zeros((0, 2), np.int64)]
    bound = np.full(len(z), np.inf, np.float32)
    for done, found in pairs(z, unique, farthest):
        squared = _projected(z, found)
        nearest += [_nearest(found, squared, bound), _nearest(found[:, ::-1], squared, bound)]
        if sum(map(len, nearest)) > 4 * NEAREST * len(unique):
            kept = _once(nearest, len(z))
            nearest = [_nearest(kept, _projected(z, kept), bound)]
        progress(done, len(unique))
    kept = _once(nearest, len(z))
    for _ in _judge(flat, rows, _nearest(kept, _projected(z, kept), bound), reach, links, judge):
        progress(len(unique), len(unique))
    return links.roots()


def _projected(z: NDArray[np.float32], pairs: NDArray[np.int64]) -> NDArray[np.float32]:
    """Returns the squared distances between the projections of pairs: (n,). z: the projections. pairs: (n, 2)."""
    squared = np.empty(len(pairs), np.float32)
    for start in range(0, len(pairs), _MEASURED):
        some = pairs[start : start + _MEASURED]
        squared[start : start + _MEASURED] = squared_norms(z[some[:, 0]] - z[some[:, 1]])
    return squared


def _nearest(pairs: NDArray[np.int64], squared: NDArray[np.float32], bound: NDArray[np.float32]) -> NDArray[np.int64]:
    """Returns `pairs` without those whose second row is certainly not among the NEAREST rows nearest to the first row.

    Each call gets a part of the pairs. A last call, with all pairs that the others returned, leaves only the pairs of
    each row with its NEAREST nearest rows.
    pairs: (n, 2) places, no pair twice.
    squared: (n,) the squared distances of the pairs.
    bound: for each place, an upper bound of the squared distances to its NEAREST nearest rows. The function lowers it
    in the array itself where the pairs give a smaller bound.
    """
    near = squared <= bound[pairs[:, 0]]
    pairs, squared = pairs[near], squared[near]
    order = np.lexsort((squared, pairs[:, 0]))
    pairs, squared = pairs[order], squared[order]
    rank = np.arange(len(pairs)) - np.searchsorted(pairs[:, 0], pairs[:, 0])
    last = rank == NEAREST - 1
    bound[pairs[last, 0]] = squared[last]
    nearest: NDArray[np.int64] = pairs[rank < NEAREST]
    return nearest


def _once(parts: Sequence[NDArray[np.int64]], places: int) -> NDArray[np.int64]:
    """Joins arrays of pairs, each (n, 2), and removes repeated pairs. places: larger than all places in the pairs."""
    pairs = np.concatenate(parts)
    return np.stack(np.divmod(np.unique(pairs[:, 0] * places + pairs[:, 1]), places), 1)


def _judge(
    flat: JoinedRows, rows: NDArray[np.int64], pairs: NDArray[np.int64], reach: float, links: _Links, judge: Judge
) -> Iterator[None]:
    """Asks the judge about the pairs within `reach`, nearest first, and links those that it accepts.

    judge: decides which pairs are linked; see `linked`.
    Pairs that are already linked are skipped. Yields after each call of the judge, so that the caller can report
    progress.
    """
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)
    blocks = range(0, len(pairs), PAIRS)
    distances = np.concatenate([np.zeros(0), *(_distances(flat, rows, pairs[at : at + PAIRS]) for at in blocks)])
    order = np.argsort(distances, kind="stable")[: int((distances <= reach).sum())]
    pairs, distances = pairs[order], distances[order]
    while len(pairs):
        root = links.roots()
        apart = root[pairs[:, 0]] != root[pairs[:, 1]]
        pairs, distances = pairs[apart], distances[apart]
        agreed = judge(pairs[:JUDGED], distances[:JUDGED])
        for a, b in pairs[:JUDGED][agreed].tolist():
            links.join(a, b)
        pairs, distances = pairs[JUDGED:], distances[JUDGED:]
        yield


def _distances(flat: JoinedRows, rows: NDArray[np.int64], pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns the distances of pairs, computed in float64: (n,). pairs: (n, 2) places."""
    difference = flat.read(rows[pairs[:, 0]]).astype(np.float64) - flat.read(rows[pairs[:, 1]])
    distances: NDArray[np.float64] = np.sqrt(squared_norms(difference))
    return distances


def _all_near(
    z: NDArray[np.float32], unique: NDArray[np.int64], farthest: float
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yields all pairs of places whose projections are at most `farthest` apart, a block of rows at a time.

    Each time, yields the number of rows completed so far, and pairs (n, 2). A pair can occur twice.
    z: the projections of all rows, in the order of their places.
    unique: the places of the different rows.
    """
    order = unique[np.argsort(z[unique, 0], kind="stable")]
    along = z[order, 0].astype(np.float64)
    for start in range(0, len(order), BLOCK):
        stop = min(start + BLOCK, len(order))
        end = int(np.searchsorted(along, along[stop - 1] + farthest, side="right"))
        for other in range(start, end, WINDOW):
            yield start, _near(z, order[start:stop], order[other : min(other + WINDOW, end)], farthest)
    yield len(order), np.zeros((0, 2), np.int64)


def _listed_near(
    z: NDArray[np.float32], unique: NDArray[np.int64], farthest: float
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yields near pairs like `_all_near`, but may miss some, because a row is only compared with rows in a few lists.

    The lists are the PROBES inverted lists nearest to the row. In them, the row is paired with up to NEIGHBOURS rows,
    the nearest ones.
    """
    d, lists = z.shape[1], int(4 * len(unique) ** 0.5)
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(d), d, lists, faiss.METRIC_L2, True)
    index.cp.niter = 10
    index.cp.min_points_per_centroid = 1
    index.cp.max_points_per_centroid = 64
    index.train(z[unique])
    for start in range(0, len(unique), WINDOW):
        index.add(z[unique[start : start + WINDOW]])
    parameters = faiss.SearchParametersIVF(nprobe=min(PROBES, lists))
    # Similar items are searched together, so that the lists stay in the processor's cache.
    order = np.argsort(index.quantizer.assign(z[unique], 1)[:, 0], kind="stable")
    for start in range(0, len(order), BLOCK):
        part = order[start : start + BLOCK]
        squared, places = index.search(z[unique[part]], NEIGHBOURS + 1, params=parameters)
        near = (places >= 0) & (squared <= farthest * farthest * (1 + 1e-4) + 1e-6) & (places != part[:, None])
        left, right = np.repeat(part, near.sum(1)), places[near]
        yield min(start + BLOCK, len(order)), np.stack([unique[left], unique[right]], 1)


def _near(
    z: NDArray[np.float32], left: NDArray[np.int64], right: NDArray[np.int64], farthest: float
) -> NDArray[np.int64]:
    """Returns the pairs of a place in `left` and a place in `right` whose projections are near each other: (n, 2).

    The projections are at most `farthest` apart or, because of rounding, a little more. z: as in `_all_near`.
    """
    # |a - b|^2 <= f^2 is equivalent to a.b - |b|^2 / 2 >= (|a|^2 - f^2) / 2: one product and one comparison.
    a, b = z[left], z[right]
    own, others = squared_norms(a), squared_norms(b)
    ones, halves = np.ones((len(a), 1), np.float32), -others[:, None] / 2
    product = np.concatenate([a, ones], 1) @ np.concatenate([b, halves], 1).T  # (left, right)
    slack = 1e-5 * max(float(own.max()), float(others.max()))
    with np.errstate(over="ignore"):  # if `farthest` is huge
        least = ((own.astype(np.float64) - farthest * farthest) / 2 - slack).astype(np.float32)
    i, j = np.nonzero(product >= least[:, None])
    pairs = np.stack([left[i], right[j]], 1)
    different: NDArray[np.int64] = pairs[pairs[:, 0] != pairs[:, 1]]
    return different


def _measure(flat: JoinedRows, rows: NDArray[np.int64], pairs: NDArray[np.int64], reach: float, links: _Links) -> None:
    """Measures the pairs, up to PAIRS at a time, and links those within `reach`.

    Before each measurement, drops the pairs that are linked already, directly or through other rows.
    """
    while len(pairs):
        root = links.roots()
        pairs = pairs[root[pairs[:, 0]] != root[pairs[:, 1]]]
        some, pairs = pairs[:PAIRS], pairs[PAIRS:]
        if not len(some):
            return
        near = _distances(flat, rows, some) <= reach
        for a, b in some[near].tolist():
            links.join(a, b)


class _Links:
    """A union-find structure over places. The root of a set is its lowest place."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count))
        self._roots: NDArray[np.int64] | None = None

    def find(self, place: int) -> int:
        while self.parent[place] != place:
            self.parent[place] = self.parent[self.parent[place]]
            place = self.parent[place]
        return place

    def join(self, a: int, b: int) -> None:
        a, b = self.find(a), self.find(b)
        if a != b:
            self.parent[max(a, b)] = min(a, b)
            self._roots = None

    def roots(self) -> NDArray[np.int64]:
        """Returns the root of the set that each place belongs to: (n,)."""
        if self._roots is None:
            root: NDArray[np.int64] = np.array(self.parent, np.int64)
            while (higher := root[root]).tobytes() != root.tobytes():
                root = higher
            self._roots = root
        return self._roots
