"""Chooses the way to search an index, by measurement: the fastest way that reaches a recall within a memory limit.

The candidates are approximate searches of several kinds, and exact search. Some items are held out as queries; the
approximate searches are measured without these items. Half of the queries choose the settings; the other half
measure the recall that is recorded. After the measurement, the held-out items are added to the chosen search, which
then replaces the previous one in one step; until then, the index does not change. See `simsearch.search.tuning`, and
for binary codes `simsearch.indexing.tune_codes`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from simsearch.common.progress import Progress, no_progress
from simsearch.errors import UsageError
from simsearch.indexing import meta_update, sketches
from simsearch.search import tuning
from simsearch.search.ann import AnnIndex, K
from simsearch.search.exact import FlatIndex
from simsearch.search.snapshot import Snapshots
from simsearch.search.tuning import Choice
from simsearch.storage import derived
from simsearch.storage.database import Changes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from simsearch.storage.index import Index

LOCK_SECONDS, RECORD_LOCK_SECONDS = 1.0, 60.0
"""Seconds to wait for another writer before measuring, and before recording the result.

The second limit is longer, since giving up would then lose the measurement.
"""


def tune(index: Index, recall: float, memory: int | None = None, progress: Progress = no_progress) -> Choice:
    """Chooses, builds and records the fastest approximate search with at least `recall` and at most `memory` bytes.

    Chooses exact search if no approximate search is faster, if the index is small, or if the recall is 1.

    recall: the share of a query's 10 true neighbours that must be found, above 0 and at most 1.
    memory: the maximum size of the approximate search in bytes; None for no limit.
    progress: called with the number of rows processed and their total.
    Raises UsageError for an invalid recall or memory, and IndexLockedError if another process is writing.
    """
    if not 0 < recall <= 1:
        raise UsageError(f"the recall is {recall}, but must be above 0 and at most 1")
    if memory is not None and memory < 1:
        raise UsageError(f"the memory is {memory} bytes, but must be at least 1")
    with index.writing(LOCK_SECONDS):  # fail now if the index is locked, not after minutes of measuring
        pass
    flat, rows = open_flat(index)
    if len(rows) < tuning.LEAST or recall == 1:
        return record_choice(index, None, tuning.exact(0.0))
    made, choice = tuning.choose(flat, rows, recall, memory, progress)
    return record_choice(index, made, choice, recall)


def open_flat(index: Index) -> tuple[FlatIndex, NDArray[np.int64]]:
    """Returns an exact search over all rows of an index, and the rows of its items: (n,), ascending."""
    with index.reading() as reader:
        return Snapshots(index).current(reader).flat, reader.rows()


def record_choice(index: Index, made: AnnIndex | None, choice: Choice, target: float | None = None) -> Choice:
    """Replaces the approximate search of an index by a new one, or by exact search; returns the choice as recorded.

    Open readers keep the previous approximate search.
    made: the new approximate search; None for exact search.
    choice: the kind and the measurements of the new search. target: the requested recall.
    Raises UsageError if the index was compacted since `made` was built, and IndexLockedError if another process is
    writing.
    """
    with index.writing(RECORD_LOCK_SECONDS):
        if made is not None and made.compactions != index.feature_files.compactions:
            raise UsageError(f"{index.path} was compacted during tuning", hint="tune the index again")
        search: dict[str, Any] = {"kind": choice.kind, "recall": choice.recall, "parameters": {}}
        if made is not None:
            name, parameters = made.save(index.folder.child(derived.FOLDER, create=True))
            search["parameters"] = {**parameters, "folder": name}
            search |= {
                "low": choice.low,
                "high": choice.high,
                "queries": choice.queries,
                "k": K,
                "memory": choice.memory,
                "target": target,
                "items": len(index),
            }
        index.refresh()
        index.write_meta(replace(index.meta, search=search))
        index.database.apply(Changes())  # a new generation, so that readers reload
        meta_update.refresh_meta(index)
        sketches.update(index)
        sketches.delete_unused(index)
    return replace(choice, parameters=search["parameters"])
