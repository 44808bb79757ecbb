"""Updates an approximate search while its index grows: encodes new items and measures the recall.

The caller holds the writer lock, and calls this module at the end of a build and of other large changes. The recall is
measured only if the index has grown by a tenth since the last measurement. A measurement reads all features once, for
all queries together.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common import intervals
from simsearch.errors import SimsearchError
from simsearch.search import binary_codes
from simsearch.search.ann import K, recalls
from simsearch.storage.derived import structure_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.search.exact import FlatIndex
    from simsearch.storage.folder import Folder

GROWN = 1.1
"""Factor by which the number of items must grow before the recall is measured again."""

QUERIES = 100
"""Maximum number of new items used as queries when the recall is measured. These items are not searched."""


def update(
    index: Folder, search: dict[str, Any], flat: FlatIndex, live: NDArray[np.int64], measure: bool = True
) -> dict[str, Any]:
    """Updates the approximate search, and returns the updated entry `search` of `meta.json`.

    The key `since` of the entry describes the last measurement of the recall: the recall with its confidence limits
    (low, high), the number of queries, and the number of items in the index. The queries are items that were added
    since the previous measurement, or since the approximate search was built.
    If the approximate search cannot be read, the entry is returned unchanged. Searches are exact in that case.

    index: the index's folder. search: the present entry. flat: exact search over all rows.
    live: (n,) the rows of the items, ascending. Other rows belong to removed items.
    measure: False to skip the measurement, which is slow.
    """
    parameters = search["parameters"]
    if not isinstance(parameters, dict) or not parameters.get("folder"):
        return search
    with contextlib.suppress(SimsearchError, OSError):
        folder = structure_folder(index, parameters["folder"])
        if parameters.get("kind") == "codes":
            search = {**search, "parameters": {**parameters, "encoded": binary_codes.extend(folder, parameters, flat)}}
        before = search.get("since", search).get("items", 0)
        if measure and before and len(live) >= GROWN * before:
            search = {**search, "since": _measure(folder, search["parameters"], flat, live, len(live) - before)}
    return search


def _measure(
    folder: Folder, parameters: dict[str, Any], flat: FlatIndex, live: NDArray[np.int64], new: int
) -> dict[str, Any]:
    """Measures the recall with new items as queries; returns the value of the key `since`.

    folder: of the approximate search. parameters: those that `AnnIndex.save` returned. flat, live: see `update`.
    new: the number of new items. Their rows are the last ones of `live`.
    """
    structure = binary_codes.load(folder, parameters, flat.shards.compactions)
    queries = np.random.default_rng(0).choice(live[-new:], min(QUERIES, new), replace=False)
    others = np.setdiff1d(live, queries, assume_unique=True)
    vectors = flat.read(queries).astype(np.float32)
    truth = np.array([matches.distances[K - 1] for matches in flat.search(vectors, K, others)])
    values = recalls(structure.search(flat, vectors, K, others), truth)
    mean = intervals.with_intervals({"recall": values})["recall"]
    return {"recall": mean.value, "low": mean.low, "high": mean.high, "queries": len(queries), "items": len(live)}


def recall_dropped(search: dict[str, Any]) -> bool:
    """Returns True if even the upper confidence limit of the recall on new items is below the target recall.

    search: the entry `search` of `meta.json`.
    """
    since = search.get("since") or {}
    return bool(since.get("high", 1.0) < (search.get("target") or 0))


def describe(search: dict[str, Any], index: Path, structure: object | None) -> dict[str, Any]:
    """Returns the facts about the search that `info` shows: the entry `search` of `meta.json` and up to two more keys.

    `missing`: True if the files of the approximate search are missing or damaged, so that every search is exact.
    `repair`: the command that makes the approximate search again, if files are missing or the recall has dropped.

    index: the path of the index.
    structure: the approximate search; None if there is none or it cannot be loaded.
    """
    parameters = search["parameters"]
    if structure is None and isinstance(parameters, dict) and parameters.get("folder"):
        return {**search, "missing": True, "repair": _repair(search, index)}
    return {**search, "repair": _repair(search, index)} if recall_dropped(search) else search


def _repair(search: dict[str, Any], index: Path) -> str:
    bits = f" --codes {search['parameters']['dimensions']}" if search["kind"] == "codes" else ""
    return f"simsearch tune{bits} --recall {search['target']:g} -i {index}"
