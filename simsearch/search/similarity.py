"""Turns distances into similarities, on a scale that is measured for each index.

A similarity is 1 at distance 0, and 0.5 at the median distance of an item to its nearest neighbour. It is 0 at the
median distance of two random items and beyond, and linear between these points. So a similarity above 0.5 means that a
match is nearer than the nearest neighbours in this index usually are. A match can be the nearest of all items and still
have a low similarity.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common.distances import squared_norms

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from simsearch.storage.protocols import FeatureReader, VectorSearch

POINTS = 201
"""Number of quantiles of distances that `quantiles` returns."""

ENOUGH = 64
"""From this number of items on, the quantiles are measured on the index; for fewer, they are those of the model."""

SAMPLE = 512
"""Number of random items whose pairwise distances are measured; all items if the index has at most this number."""

QUERIES, FEWEST, CELLS = 256, 32, 1 << 24
"""`measure` searches for the nearest neighbours of QUERIES items.

In a large index, it takes fewer items, so that at most CELLS distances are computed. But it takes at least FEWEST
items, even if this needs more distances.
"""

NEIGHBOURS = 16
"""Number of neighbours to find for each item: more than one, since the nearest can be identical copies of the item."""

QUICK = 2048
"""Number of items that `estimate` reads at most."""

TYPICAL = 0.5
"""The assumed ratio of `Scale.nearest` to `Scale.random` if neither was measured.

The measured ratio is 0.51 for the Corel photographs, and 0.56 for the clothing photographs.
"""


@dataclass(frozen=True)
class Scale:
    """The two distances that define the similarities of an index.

    nearest: the median distance of an item to its nearest different item; its similarity is 0.5.
    random: the median distance of two random different items; its similarity is 0.
    """

    nearest: float
    random: float

    def similarities(self, distances: Sequence[float]) -> list[float]:
        """Returns the similarity of each distance, in [0, 1].

        If no two items differ, there is no scale: the similarity is then 1 at distance 0, and 0 at all other distances.
        """
        if not self.random > 0 or not self.nearest > 0:
            return [1.0 if distance == 0 else 0.0 for distance in distances]
        if self.nearest < self.random:
            found = np.interp(distances, (0.0, self.nearest, self.random), (1.0, 0.5, 0.0))
        else:
            d = np.asarray(distances, np.float64)
            found = np.where(d < self.random, 1 - d / (2 * self.nearest), 0.0)
        return [1.0 if distance <= 0 else share for distance, share in zip(distances, found.tolist(), strict=True)]

    def to_dict(self) -> dict[str, float]:
        """Returns the scale as it is stored in `meta.json`."""
        return asdict(self)

    @classmethod
    def of(cls, recorded: Mapping[str, Any], table: Sequence[float]) -> Scale:
        """Returns the scale that `meta.json` records; if it records none, an estimate from the quantiles of distances.

        recorded: the entry in `meta.json`, which may be empty. table: from `quantiles`.
        """
        if recorded:
            return cls(float(recorded["nearest"]), float(recorded["random"]))
        return cls(TYPICAL * median(table), median(table))


def measure(flat: VectorSearch, live: NDArray[np.int64], table: Sequence[float] = (), seed: int = 0) -> Scale | None:
    """Measures the scale of an index: exactly if it has up to SAMPLE items, otherwise on a sample.

    flat: the exact search over all rows.
    live: (n,) the rows that belong to items, ascending.
    table: `quantiles` of the present items, if known: then the distances of random pairs are not measured again.
    Returns None if there are fewer than three different items.
    """
    drawn = np.random.default_rng(seed).permutation(live)[:SAMPLE]
    known = len(live) > SAMPLE and len(table) > 1 and table[0] < table[-1]  # so at least three items differ
    pairs = None if known else _of_pairs(flat.read(np.sort(drawn)))
    if not known and (pairs is None or len(live) <= SAMPLE):
        return pairs
    count = min(QUERIES, max(FEWEST, CELLS // len(live)))
    queries = _sound(flat.read(drawn[:count])).astype(np.float32)
    found = flat.search(queries, NEIGHBOURS, None if len(live) == flat.rows else live)
    nearest = [float(near.distances[near.distances > 0][0]) for near in found if (near.distances > 0).any()]
    if not nearest:
        return pairs or _of_pairs(flat.read(np.sort(drawn)))
    return Scale(float(np.median(nearest)), pairs.random if pairs else median(table))


def estimate(features: FeatureReader, live: NDArray[np.int64], seed: int = 0) -> Scale | None:
    """Estimates the scale of an index without a recorded scale, from up to QUICK items, in hundredths of a second.

    In a sample, the nearest item is farther away than in the whole index. So the median distance to the nearest item is
    measured in half of the sample and in all of it, and the difference is extrapolated to the size of the index.
    live: (n,) the rows that belong to items, ascending.
    Returns None if there are fewer than three different items.
    """
    drawn = np.random.default_rng(seed).permutation(live)[:QUICK]
    if len(live) <= SAMPLE:
        return _of_pairs(features.read(np.sort(drawn)))
    order = np.argsort(drawn)
    x = np.empty((len(drawn), features.dimension), np.float32)
    x[order] = features.read(drawn[order])
    x = _sound(x)
    if not len(x):
        return None
    squared = _squared(x[: len(x) // 16], x)
    different = squared > 1e-5 * float(squared.max())  # identical rows are at 0, up to rounding in float32
    squared[~different] = np.inf
    if not different.any():
        return None
    random = float(np.sqrt(np.median(squared[different])))
    half, whole = _nearest(squared[:, : len(x) // 2]), _nearest(squared)
    if not whole < random and len(_different(x)) < 3:
        return None
    doublings = float(np.log2(len(live) / len(x)))
    return Scale(whole * min(1.0, whole / half if half else 1.0) ** doublings, random)


def _nearest(squared: NDArray[np.float32]) -> float:
    """Returns the median distance of a query to its nearest row that is not identical to it.

    Queries without such a row are left out; returns 0 if no query is left.
    squared: (q, n) the squared distances of q queries to n rows; inf for rows that are identical to the query.
    """
    nearest = squared.min(1)
    kept = nearest[np.isfinite(nearest)]
    return float(np.sqrt(np.median(kept))) if len(kept) else 0.0


def _squared(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Returns the squared distances of (n, D) and (m, D) rows: (n, m)."""
    own, others = squared_norms(a), squared_norms(b)
    found: NDArray[Any] = np.maximum(own[:, None] + others[None, :] - 2 * a @ b.T, 0)
    return found


def _sound(features: NDArray[Any]) -> NDArray[Any]:
    """Returns the rows of (n, D) features that have only finite values. Damaged files can have other values."""
    sound: NDArray[Any] = features[np.isfinite(features).all(1)]
    return sound


def _different(features: NDArray[Any]) -> NDArray[Any]:
    """Returns the distinct rows of (n, D) features.

    Compares the bytes of rows, which is some hundred times faster than `np.unique` over rows. Adds 0 first, to turn -0
    into 0.
    """
    rows = np.ascontiguousarray(features + features.dtype.type(0))
    _, places = np.unique(rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).ravel(), return_index=True)
    return rows[places]


def _of_pairs(features: NDArray[np.float16]) -> Scale | None:
    """Returns the scale of (n, D) features, measured on all pairs; None if there are fewer than three distinct rows."""
    x = _different(_sound(features)).astype(np.float64)
    if len(x) < 3:
        return None
    squared = _squared(x, x)
    random = float(np.median(np.sqrt(squared[np.triu_indices(len(x), 1)])))
    np.fill_diagonal(squared, np.inf)
    return Scale(float(np.median(np.sqrt(squared.min(1)))), random)


def quantiles(features: NDArray[np.float16]) -> tuple[float, ...]:
    """Returns POINTS quantiles of the distances between all distinct rows of (n, D) features, ascending.

    The quantiles are denser at small distances, where matches are. Returns () if there are fewer than two such rows.
    """
    x = _different(_sound(features)).astype(np.float64)
    if len(x) < 2:
        return ()
    pairs = np.sqrt(_squared(x, x)[np.triu_indices(len(x), 1)])
    return tuple(round(float(value), 6) for value in np.quantile(pairs, _shares(POINTS)))


def median(table: Sequence[float]) -> float:
    """Returns the median distance of random pairs, from a table of `quantiles`; 0 if the table is empty."""
    return float(np.interp(0.5, _shares(len(table)), table)) if table else 0.0


def _shares(points: int) -> NDArray[np.float64]:
    return np.linspace(0.0, 1.0, points) ** 2
