"""Makes and updates the sketch of an index: learns bounds from a sample, encodes rows, measures the excluded fraction.

A sketch has short codes of all rows, from which bounds on distances are computed (see `sketch` and `bounds`). This
module reads features and writes derived files; `simsearch.indexing.sketches` records the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from simsearch.common import pca
from simsearch.errors import SimsearchError
from simsearch.search import bounds, sketch_files
from simsearch.search.bounds import Bounds, Grid
from simsearch.search.sketch_files import SketchFacts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.search.exact import FlatIndex
    from simsearch.search.sketch import Sketch
    from simsearch.storage.folder import Folder

LEAST = 10_000
"""Smallest number of items for which a sketch is made; with fewer, a scan of all rows takes 3 ms or less."""

LAG = 64
"""New rows are added to the sketch when their number reaches this; until then, searches measure them directly."""

SAMPLE, SMALLER, QUERIES = 4096, 8, 32
"""Numbers that determine how many items are drawn to learn bounds, and how many to measure the bounds.

Bounds are learned from one item in SMALLER, but from at least SAMPLE // 2 and at most SAMPLE items. They are measured
by searches for QUERIES other items.
"""

COMPONENTS = 255
"""Maximum number of principal components."""

K, RANK = 10, 40
"""The widths of the codes are chosen for searches for K neighbours, by queries from outside the index.

For this, the distance of an item's RANK-th neighbour stands for that of such a query's K-th neighbour: unlike an item,
the query has no copies or other takes of the same picture in the index, so that its K-th neighbour is farther away.
"""

GROWN, REMADE, WORSE, ODD = 1.25, 4.0, 3.0, 0.01
"""Limits that decide when bounds are measured again and learned again.

GROWN: they are measured again if the index has grown by this factor since the last measurement.
REMADE: after a measurement, they are learned again if the index has grown by this factor since they were learned.
WORSE: they are also learned again if the fraction of rows that a search reads has grown by this factor.
ODD: they are also learned again if a larger fraction of the rows than this is far outside the grid.
"""

SCAN, CODE, NARROW, LISTED, WIDE, READ, ROW = 4e-11, 1e-9, 2.2e-11, 3e-7, 5e-10, 2e-9, 2e-6
"""Seconds that the steps of a search take, measured on two cores.

They are only used to choose the widths of the codes. For this, only the ratios matter.
SCAN: scanning the features, for each byte. CODE, NARROW: comparing narrow codes, for each code and for each byte.
LISTED: listing a row by its narrow code. WIDE: comparing wide codes, for each byte.
READ, ROW: reading and measuring a row takes READ for each dimension, and ROW in addition.
"""


def updated(
    index: Folder,
    facts: SketchFacts | None,
    flat: FlatIndex,
    live: Callable[[], NDArray[np.int64]],
    blocks: list[tuple[int, int, int]],
    learn: bool,
) -> SketchFacts | None:
    """Adds new rows to the sketch, or makes a new sketch if necessary.

    A new sketch is necessary if there is none, if its files are damaged, or if it has become worse (see `GROWN`).
    Returns the entry about the sketch for `meta.json`; None if there are too few items for a sketch.
    facts: the present entry; None if there is none.
    live: returns the (n,) rows that belong to items.
    blocks: from `Reader.blocks`.
    learn: False to add rows only; if this is not possible, `facts` is returned as it is.
    Raises OSError, SimsearchError.
    """
    if facts is not None and not facts.folder:  # a scan was faster
        again = learn and flat.rows >= 2 * facts.rows
        return _made(index, flat, live(), blocks) if again else facts
    if facts is None:
        return _made(index, flat, live(), blocks) if learn else None
    compactions, dimension = flat.shards.compactions, flat.shards.dimension
    same = facts.compactions == compactions and facts.rows <= flat.rows
    same = same and facts.blocks == sketch_files.identity(blocks, facts.rows)
    if same and flat.rows - facts.rows < LAG and facts.in_place(index):
        return facts
    try:
        known = sketch_files.read_bounds(index, facts, dimension)
        if not same:  # a compaction has renumbered the rows
            name = sketch_files.new_folder(index, known) if learn else ""
            start = replace(facts, folder=name, compactions=compactions, rows=0)
            return sketch_files.extended(index, start, known, flat, blocks) if learn else facts
        extended = sketch_files.extended(index, facts, known, flat, blocks)
        if not learn or flat.rows < GROWN * facts.measured:
            return extended
        made = sketch_files.load(index, extended, dimension)
    except (SimsearchError, OSError):  # its files are gone or damaged
        return _made(index, flat, live(), blocks) if learn else facts
    left = _measure(made, flat, live())
    drifted = left[1] > WORSE * facts.first + 0.002 or made.odd > ODD * flat.rows
    if drifted or flat.rows >= REMADE * facts.learned:
        return _made(index, flat, live(), blocks)
    return replace(extended, left=left, measured=flat.rows)


def _made(
    index: Folder, flat: FlatIndex, live: NDArray[np.int64], blocks: list[tuple[int, int, int]]
) -> SketchFacts | None:
    """Makes a sketch: learns bounds and encodes all rows. Returns its entry for `meta.json`; None for too few items.

    If a sketch would not help, the entry has no folder.
    live: (n,) the rows that belong to items.
    """
    if len(live) < LEAST:
        return None
    bounds, wanted = _learn(flat, live)
    empty = SketchFacts("", flat.shards.compactions, flat.rows)
    if bounds is None:
        return empty
    widths, name = [grid.width for grid in bounds.grids], sketch_files.new_folder(index, bounds)
    start = replace(empty, folder=name, rows=0, widths=widths, wanted=wanted)
    facts = sketch_files.extended(index, start, bounds, flat, blocks)
    left = _measure(sketch_files.load(index, facts, flat.shards.dimension), flat, live)
    return replace(facts, left=left, first=left[1], learned=flat.rows, measured=flat.rows)


def _learn(flat: FlatIndex, live: NDArray[np.int64]) -> tuple[Bounds | None, int]:
    """Learns bounds from a sample, and chooses the widths of the codes with which a search takes the least time.

    live: (n,) the rows that belong to items.
    Returns the bounds, and the number of rows that a search for K neighbours should first list by their narrow codes
    (`SketchFacts.wanted`). The bounds are None if a scan of all rows is at least as fast as a search with the codes, or
    if no bounds can be learned.
    """
    random = np.random.default_rng(0)
    size = min(SAMPLE, max(SAMPLE // 2, len(live) // SMALLER))
    chosen = random.permutation(live)[: size + QUERIES]
    features = flat.read(np.sort(chosen[QUERIES:]))
    features = features[np.isfinite(features).all(1)]
    queries = flat.read(chosen[:QUERIES]).astype(np.float32)
    queries = queries[np.isfinite(queries).all(1)]
    if len(features) < size // 2 or not len(queries):
        return None, 0
    rank = min(RANK, len(live) - 1)  # the first is the query itself
    nearest = flat.scan(queries, rank + 1, live)
    truths = [np.array([each.distances[place] for each in nearest]) for place in (K, rank)]
    dimension = flat.shards.dimension
    found = pca.fit_pca(features, min(COMPONENTS, dimension - 1), iterations=1)
    mean, axes = found.mean, np.ascontiguousarray(found.axes.T)
    defect = bounds.defect_of(axes)
    if not defect < bounds.SKEW:
        return None, 0
    parts = bounds.project(features, mean, axes)
    narrow, wide = bounds.sizes(dimension, len(axes))
    grids = {w: bounds.make_grid(*parts, w - 1, defect) for w in {*narrow, *wide} if w > 1}
    near, far = {}, {}
    for w, grid in grids.items():
        made = Bounds(mean, axes, (grid, grid), defect)
        codes = made.encode(features)[0], made.encode(queries, query=True)[0]
        near[w], far[w] = (_shares(made, grid, *codes, truth) for truth in truths)

    def seconds(pair: tuple[int, int], shares: dict[int, NDArray[np.float64]]) -> float:
        return _seconds(flat.rows, dimension, pair, shares[pair[0]].mean(), shares[pair[1]].mean())

    pairs = [(a, b) for a in narrow for b in wide if a in grids and b in grids]
    if not pairs:
        return None, 0
    best = min(pairs, key=lambda pair: seconds(pair, far))
    if seconds(best, near) >= SCAN * 2 * dimension * flat.rows:
        return None, 0
    wanted = int(flat.rows * np.quantile(far[best[0]], 0.9)) + 64
    return Bounds(mean, axes, (grids[best[0]], grids[best[1]]), defect), wanted


def _shares(
    made: Bounds, grid: Grid, rows: bounds.Encoded, queries: bounds.Encoded, truth: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns, for each query, the fraction of rows that the bounds do not exclude.

    grid: the grid to which the codes are rounded (see `bounds`).
    rows, queries: the codes of a sample of rows, and of queries.
    truth: (nq,) the distance from each query to one of its neighbours, such as the K-th.
    """
    left = []
    for code, error, distance in zip(queries.codes, queries.errors, truth, strict=True):
        limit = grid.reach(float(distance), made.defect, error + rows.errors)
        left.append(np.mean(bounds.squares(rows.codes, code) <= limit))
    return np.array(left)


def _seconds(rows: int, dimension: int, widths: tuple[int, int], narrow: float, wide: float) -> float:
    """Estimates the seconds that a search takes.

    widths: the number of bytes of a narrow and of a wide code.
    narrow, wide: the fractions of rows that these codes do not exclude.
    """
    listed = CODE + NARROW * widths[0] + narrow * (LISTED + WIDE * widths[1]) + wide * (ROW + READ * dimension)
    return rows * listed + NARROW * 4 * dimension * widths[1]


def _measure(made: Sketch, flat: FlatIndex, live: NDArray[np.int64]) -> list[float]:
    """Measures two fractions of all rows: rows not excluded by narrow codes, and rows excluded by neither code.

    The fractions are averages over searches for the K neighbours of QUERIES random items.
    """
    queries = flat.read(np.random.default_rng(1).choice(live, QUERIES, replace=False)).astype(np.float32)
    found = made.search(queries, K + 1, live, flat.read)
    truth = [np.inf if near is None else float(near.distances[K]) for near in found]
    return made.shares(queries, truth)
