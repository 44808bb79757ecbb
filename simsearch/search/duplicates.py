"""Groups of near-identical items, without measuring all pairs.

Features are projected on their principal components. An orthonormal projection never lengthens a distance, so items
farther apart there than the threshold need not be compared; along the first component, sorted, that leaves out all
but a window of short vectors. What is left is measured in float64, so the groups are those of all pairs; the work on
the short vectors, though, grows with the square of their number. Of large indexes, each item is therefore compared
with its nearest ones of the lists around it (an inverted file: the work grows with the power 1.5), and a sample of
items, searched exactly, tells which share of the near pairs came into one group. Memory grows with the items only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from simsearch.common import pca
from simsearch.errors import ImageError, SimsearchError, UsageError
from simsearch.images.sources import resolve
from simsearch.search import similarity
from simsearch.search.searcher import NEAR_IDENTICAL

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.storage.model import IndexModel
    from simsearch.storage.protocols import OpenIndex, Searchable, VectorSearch
    from simsearch.storage.reader import Item
from simsearch.common.progress import Progress
from simsearch.images.perturb import COPIES

COMPONENTS = 64

SAMPLE = 8192

"""Rows whose principal components are taken."""

BLOCK, WINDOW, PAIRS = 512, 8192, 1024

"""Rows compared at once with so many others, and pairs measured at once."""

EXACT = 50_000

"""Up to so many different items all pairs of short vectors are compared."""

NEIGHBOURS, PROBES = 32, 16

"""Beyond: an item's nearest that are measured, and the lists that they are sought in."""

CHECKED, CHECKED_NEIGHBOURS = 256, 8

"""Items whose exact neighbours, at most so many of each, tell what was found."""

ORIGINALS = 32

"""Pictures whose copies calibrate the threshold."""

FARTHEST = 0.35

"""No calibrated threshold exceeds this share of the median random pair; see `search.NEAR_IDENTICAL`."""


@dataclass(frozen=True)
class Member:
    """An item of a group. distance: to the group's first item, that of the lowest id."""

    item: Item
    path: str
    distance: float


@dataclass(frozen=True)
class Threshold:
    """distance: what counts as near-identical. copies: for each change of a picture, the share of copies within it."""

    distance: float
    copies: dict[str, float] = field(default_factory=dict)


FAITHFUL = ("JPEG 50", "scaled to 75 %", "cropped by 5 %", "brighter by 10 %")

"""The changes that the threshold is set by; those that change every pixel's place are only reported."""


def copy_threshold(index: OpenIndex, model: IndexModel, seed: int = 0) -> Threshold:
    """What 90 % of slightly changed copies of the index's own pictures are nearer than.

    Where pictures or model cannot be read, it is the share of the median random pair that `dedup` uses.
    """
    median = similarity.median(index.meta.distances)
    fallback = Threshold(NEAR_IDENTICAL * median)
    with index.reading() as reader:
        ids, _ = reader.ids()
    originals: list[Image.Image] = []
    for number in np.random.default_rng(seed).permutation(ids)[: 2 * ORIGINALS]:
        try:
            originals.append(resolve.open_picture(_file(index, int(number)), None).image)
        except ImageError:
            continue
        if len(originals) == ORIGINALS:
            break
    if not originals:
        return fallback
    try:
        base = model.features(originals).astype(np.float64)
        found = {
            name: np.linalg.norm(model.features([change(image) for image in originals]) - base, axis=1)
            for name, change in COPIES.items()
        }
    except SimsearchError:  # the model's weights are not here
        return fallback
    distance = float(np.quantile(np.concatenate([found[name] for name in FAITHFUL]), 0.9))
    if median:
        distance = min(distance, FARTHEST * median)
    return Threshold(distance, {name: float((d <= distance).mean()) for name, d in found.items()})


def _file(index: OpenIndex, number: int) -> bytes:
    """The bytes of an item's image file. Raises ImageError."""
    with index.reading() as reader:
        item = reader.item(number)
        return index.sources(reader)[item.source].read(item.path)


def duplicate_groups(
    snapshots: Searchable, max_distance: float, progress: Progress = lambda done, total: None, exact: bool = False
) -> list[list[Member]]:
    """Items linked by chains of steps of at most `max_distance`, largest group first, each by id.

    Beyond EXACT different items some links may be missed, see `checked`, unless `exact` is asked for. progress: items
    compared and their number. Raises UsageError for a distance that is none.
    """
    if not max_distance >= 0:
        raise UsageError(f"the largest distance is {max_distance}, but distances are not negative")
    with snapshots.reading() as reader:
        snapshot = snapshots.current(reader)
        ids, rows = reader.ids()
        root = _linked(snapshot.flat, rows, float(max_distance), progress, exact)
        order = np.argsort(root, kind="stable")
        starts = np.flatnonzero(np.diff(root[order], prepend=-1))
        found = []
        for places in np.split(order, starts[1:]):
            if len(places) < 2:
                continue
            near = snapshot.flat.read(rows[places]).astype(np.float64)
            distances = np.linalg.norm(near - near[0], axis=1)
            items = [reader.item(int(number)) for number in ids[places]]
            paths = [snapshot.sources[item.source].display(item.path) for item in items]
            found.append([Member(*each) for each in zip(items, paths, distances.tolist(), strict=True)])
    return sorted(found, key=lambda group: (-len(group), group[0].item.id))


def checked(snapshots: Searchable, found: list[list[Member]], max_distance: float, seed: int = 0) -> tuple[int, int]:
    """How many near pairs a sample of items has by an exact search, and how many of them are in one group."""
    group = {member.item.id: number for number, members in enumerate(found) for member in members}
    with snapshots.reading() as reader:
        flat = snapshots.current(reader).flat
        ids, rows = reader.ids()
        owner = np.full(flat.rows, -1)
        owner[rows] = ids
        chosen = np.random.default_rng(seed).choice(len(ids), min(CHECKED, len(ids)), replace=False)
        queries = flat.read(rows[chosen]).astype(np.float32)
        near = flat.search(queries, CHECKED_NEIGHBOURS + 1, np.sort(rows))
    pairs = together = 0
    for number, each in zip(ids[chosen].tolist(), near, strict=True):
        others = [other for other in owner[each.rows[each.distances <= max_distance]].tolist() if other != number]
        pairs += len(others)
        together += sum(number in group and group[number] == group.get(other) for other in others)
    return pairs, together


def _linked(
    flat: VectorSearch, rows: NDArray[np.int64], reach: float, progress: Progress, exact: bool
) -> NDArray[np.int64]:
    """For each of (n,) rows the first place of its group."""
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
        for place, row in enumerate(features, start):  # rows alike to the bit are linked here
            links.join(first.setdefault(hashlib.blake2b(row.tobytes(), digest_size=16).digest(), place), place)
    unique = np.fromiter(first.values(), np.int64)
    rounding = 1e-5 * float(np.linalg.norm(onto.mean) + np.sqrt(np.einsum("nd,nd->n", z, z).max()))
    farthest = reach * (1 + 1e-4) + rounding
    pairs = _all_near if exact or len(unique) <= EXACT else _listed_near
    for done, found in pairs(z, unique, farthest):
        _measure(flat, rows, found, reach, links)
        progress(done, len(unique))
    return links.roots()


def _all_near(
    z: NDArray[np.float32], unique: NDArray[np.int64], farthest: float
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """All pairs (n, 2) of places at most so far apart, some at a time, and how many items they are complete for."""
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
    """Like `_all_near`, of each item's nearest in the lists around it."""
    import faiss

    d, lists = z.shape[1], int(4 * len(unique) ** 0.5)
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(d), d, lists, faiss.METRIC_L2, True)
    index.cp.niter = 10
    index.cp.min_points_per_centroid = 1
    index.cp.max_points_per_centroid = 64
    index.train(z[unique])
    for start in range(0, len(unique), WINDOW):
        index.add(z[unique[start : start + WINDOW]])
    parameters = faiss.SearchParametersIVF(nprobe=min(PROBES, lists))
    # What is alike is asked for together, so that the lists stay in the processor's cache.
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
    """The pairs (n, 2) of places at most so far apart after projection, and a few more by rounding."""
    # |a - b|^2 <= f^2 is a.b - |b|^2 / 2 >= (|a|^2 - f^2) / 2: one product and one comparison.
    a, b = z[left], z[right]
    own, others = np.einsum("nd,nd->n", a, a), np.einsum("nd,nd->n", b, b)
    ones, halves = np.ones((len(a), 1), np.float32), -others[:, None] / 2
    product = np.concatenate([a, ones], 1) @ np.concatenate([b, halves], 1).T  # (left, right)
    slack = 1e-5 * max(float(own.max()), float(others.max()))
    with np.errstate(over="ignore"):  # of a distance that all pairs are within
        least = ((own.astype(np.float64) - farthest * farthest) / 2 - slack).astype(np.float32)
    i, j = np.nonzero(product >= least[:, None])
    pairs = np.stack([left[i], right[j]], 1)
    different: NDArray[np.int64] = pairs[pairs[:, 0] != pairs[:, 1]]
    return different


def _measure(
    flat: VectorSearch, rows: NDArray[np.int64], pairs: NDArray[np.int64], reach: float, links: _Links
) -> None:
    """Links those pairs that are really that near, some at a time; what is linked already needs no measuring."""
    while len(pairs):
        root = links.roots()
        pairs = pairs[root[pairs[:, 0]] != root[pairs[:, 1]]]
        some, pairs = pairs[:PAIRS], pairs[PAIRS:]
        if not len(some):
            return
        difference = flat.read(rows[some[:, 0]]).astype(np.float64) - flat.read(rows[some[:, 1]])
        near = np.sqrt(np.einsum("nd,nd->n", difference, difference)) <= reach
        for a, b in some[near].tolist():
            links.join(a, b)


class _Links:
    """A union-find over places; a set's root is its lowest place."""

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
        """The root of every place."""
        if self._roots is None:
            root: NDArray[np.int64] = np.array(self.parent, np.int64)
            while (higher := root[root]).tobytes() != root.tobytes():
                root = higher
            self._roots = root
        return self._roots
