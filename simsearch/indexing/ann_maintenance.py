"""What becomes of a search structure when the index grows: new items are encoded, and its recall is watched.

Called after each commit of many changes, under the writer lock. Measuring reads all features once, for all queries
together, and only when the index has grown by a tenth since the last time.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common import intervals
from simsearch.errors import IndexDamagedError
from simsearch.search import binary_codes
from simsearch.search.ann import K, recalls

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.search.exact import FlatIndex

GROWN = 1.1
"""The recall is measured again when so many times as many items are there as when it last was."""

QUERIES = 100
"""New items that measure it; they are left out of what is searched."""


def update(
    derived: Path, search: dict[str, Any], flat: FlatIndex, live: NDArray[np.int64], measure: bool = True
) -> dict[str, Any]:
    """What `meta.json` says of the search, brought up to date for an index with the rows `live`, ascending.

    `since` is the recall of items that came after the structure: value, low, high, queries, and items at that time. A
    structure that cannot be read is left to those who search: without it, they search exactly. measure: whether the
    recall may be measured, which takes its time.
    """
    parameters = search["parameters"]
    if not isinstance(parameters, dict) or not parameters.get("folder"):
        return search
    folder = derived / Path(parameters["folder"]).name
    with contextlib.suppress(IndexDamagedError):
        if parameters.get("kind") == "codes":
            search = {**search, "parameters": {**parameters, "encoded": binary_codes.extend(folder, parameters, flat)}}
        before = search.get("since", search).get("items", 0)
        if measure and before and len(live) >= GROWN * before:
            search = {**search, "since": _measured(folder, search["parameters"], flat, live, len(live) - before)}
    return search


def _measured(
    folder: Path, parameters: dict[str, Any], flat: FlatIndex, live: NDArray[np.int64], new: int
) -> dict[str, Any]:
    """The recall of the `new` last rows, or some of them."""
    made = binary_codes.load(folder, parameters, flat.shards.epoch)
    queries = np.random.default_rng(0).choice(live[-new:], min(QUERIES, new), replace=False)
    others = np.setdiff1d(live, queries, assume_unique=True)
    vectors = flat.read(queries).astype(np.float32)
    truth = np.array([found.distances[K - 1] for found in flat.search(vectors, K, others)])
    shares = recalls(made.search(flat, vectors, K, others), truth)
    mean = intervals.with_intervals({"recall": shares})["recall"]
    return {"recall": mean.value, "low": mean.low, "high": mean.high, "queries": len(queries), "items": len(live)}


def recall_dropped(search: dict[str, Any]) -> bool:
    """Whether the recall of what came since lies below what was asked for, by its whole confidence interval."""
    since = search.get("since") or {}
    return bool(since.get("high", 1.0) < (search.get("target") or 0))


def describe(search: dict[str, Any], index: Path, structure: object | None) -> dict[str, Any]:
    """What `info` says of the search: what is recorded, and the command that repairs what is wrong with it.

    structure: what could be loaded. missing: its files are gone or cannot be read, so every search is exact.
    """
    parameters = search["parameters"]
    if structure is None and isinstance(parameters, dict) and parameters.get("folder"):
        return {**search, "missing": True, "repair": _repair(search, index)}
    return {**search, "repair": _repair(search, index)} if recall_dropped(search) else search


def _repair(search: dict[str, Any], index: Path) -> str:
    bits = f" --codes {search['parameters']['dimensions']}" if search["kind"] == "codes" else ""
    return f"simsearch tune{bits} --recall {search['target']:g} -i {index}"
