"""Makes and updates the sketch of an index: learns bounds from a sample, encodes rows, measures the bounds.

Everything here reads features and writes derived files; `simsearch.indexing.sketches` records the result.
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
"""Number of rows from which a sketch is made; a scan of fewer takes 3 ms or less."""

LAG = 64
"""New rows are added to the sketch when there are at least this number; searches measure them directly until then."""

SAMPLE, SMALLER, QUERIES = 4096, 8, 32
"""Numbers of rows to learn from, and of rows that serve as queries to measure the bounds.

A small index is learned from one row in SMALLER, but at least SAMPLE // 2, any other from SAMPLE rows.
"""

COMPONENTS = 255
"""Maximum number of principal components."""

K = 10
"""The widths are chosen for searches of this number of neighbours."""

GROWN, REMADE, WORSE, ODD = 1.25, 4.0, 3.0, 0.01
"""Limits after which bounds are measured again or learned again.

GROWN, REMADE: the growth of the index after which the bounds are measured again, and learned again.
WORSE: the bounds are also learned again if the share of rows that is read has grown by this factor.
ODD: they are also learned again if a larger share of the rows is far outside the grid.
"""

SCAN, NARROW, LISTED, WIDE, READ, ROW = 4e-11, 3e-11, 6e-7, 5e-10, 2e-9, 2e-6
"""Seconds that the steps of a search take, measured on two cores.

Only the ratios matter, and only for the choice of widths.
SCAN: a scan, for each byte. NARROW: comparing narrow codes, for each byte. LISTED: listing a row by its narrow code.
WIDE: comparing wide codes, for each byte. READ, ROW: reading and measuring a row, for each dimension and for each row.
"""


def updated(
    index: Folder,
    facts: SketchFacts | None,
    flat: FlatIndex,
    live: Callable[[], NDArray[np.int64]],
    blocks: list[tuple[int, int, int]],
    learn: bool,
) -> SketchFacts | None:
    """Extends the sketch to all rows or makes a new one; returns the new record for `meta.json`, None without a sketch.

    index: the index's folder. live: returns the (n,) rows of the items. blocks: from `Reader.blocks`.
    learn: False to add rows only, and never learn bounds. Raises OSError, SimsearchError.
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
    """Learns bounds and encodes all rows; None if there are too few rows."""
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
    """Learns bounds from a sample, and chooses the widths that take the least time on the index.

    Returns the bounds (None if a scan is as fast or no bounds can be learned) and the number of rows to list for K
    neighbours.
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
    truth = np.array([near.distances[K] for near in flat.scan(queries, K + 1, live)])  # the first is the row itself
    dimension = flat.shards.dimension
    found = pca.fit_pca(features, min(COMPONENTS, dimension - 1), iterations=1)
    mean, axes = found.mean, np.ascontiguousarray(found.axes.T)
    defect = bounds.defect_of(axes)
    if not defect < bounds.SKEW:
        return None, 0
    parts = bounds.project(features, mean, axes)
    narrow, wide = bounds.sizes(dimension, len(axes))
    grids = {w: bounds.make_grid(*parts, w - 1, defect) for w in {*narrow, *wide} if w > 1}
    shares = {}
    for w, grid in grids.items():
        made = Bounds(mean, axes, (grid, grid), defect)
        shares[w] = _shares(made, grid, made.encode(features)[0], made.encode(queries, query=True)[0], truth)
    times = {
        (a, b): _seconds(flat.rows, dimension, (a, b), shares[a].mean(), shares[b].mean())
        for a in narrow
        for b in wide
        if a in grids and b in grids
    }
    if not times:
        return None, 0
    best = min(times, key=lambda pair: times[pair])
    if times[best] >= SCAN * 2 * dimension * flat.rows:
        return None, 0
    wanted = int(1.3 * flat.rows * np.quantile(shares[best[0]], 0.9)) + 64
    return Bounds(mean, axes, (grids[best[0]], grids[best[1]]), defect), wanted


def _shares(
    made: Bounds, grid: Grid, rows: bounds.Encoded, queries: bounds.Encoded, truth: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns the share of rows not excluded by the bounds, for each query. truth: distances of the K-th neighbours."""
    left = []
    for code, error, distance in zip(queries.codes, queries.errors, truth, strict=True):
        limit = grid.reach(float(distance), made.defect, error + rows.errors)
        left.append(np.mean(bounds.squares(rows.codes, code) <= limit))
    return np.array(left)


def _seconds(rows: int, dimension: int, widths: tuple[int, int], narrow: float, wide: float) -> float:
    """Estimates the seconds of a search. narrow, wide: the shares of rows that these codes do not exclude."""
    listed = NARROW * widths[0] + narrow * (LISTED + WIDE * widths[1]) + wide * (ROW + READ * dimension)
    return rows * listed + NARROW * 4 * dimension * widths[1]


def _measure(made: Sketch, flat: FlatIndex, live: NDArray[np.int64]) -> list[float]:
    """Searches the K neighbours of QUERIES random items. Returns two fractions of all rows, averaged over the items.

    The first is of the rows that the narrow codes leave, the second of those that the wide codes leave.
    """
    queries = flat.read(np.random.default_rng(1).choice(live, QUERIES, replace=False)).astype(np.float32)
    found = made.search(queries, K + 1, live, flat.read)
    truth = [np.inf if near is None else float(near.distances[K]) for near in found]
    return made.shares(queries, truth)
