"""Updates the sketch (the short codes that speed up exact searches), and records it in `meta.json`.

`simsearch.search.sketch` explains sketches. The caller holds the writer lock, and calls this module after the commits
of a build and of other changes. If the process is killed, the previous sketch stays in use, because the name of a
sketch and its number of rows are recorded only after its files are on disk.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from simsearch.errors import SimsearchError
from simsearch.search import sketch_making
from simsearch.search.exact import FlatIndex
from simsearch.search.sketch_files import SketchFacts
from simsearch.storage import derived
from simsearch.storage.database import Changes

if TYPE_CHECKING:
    from simsearch.storage.index import Index


BEHIND = 4096
"""Number of new rows after which a build extends the sketch; scanning this number of rows takes about 2 ms."""


def keep_up(index: Index, rows: int) -> None:
    """Adds new rows to the sketch (short codes for exact searches), so that searches stay fast during a build.

    Does nothing while fewer than `BEHIND` rows are new. rows: the number of rows committed so far.
    """
    facts = SketchFacts.of(index.meta.sketch)
    if rows >= sketch_making.LEAST and rows - (0 if facts is None else facts.rows) >= BEHIND:
        facts, before = _updated(index, True)
        if facts is not None and facts != before:
            index.refresh()
            index.write_meta(replace(index.meta, sketch=facts.to_dict()))  # the generation and the counts stay
            delete_unused(index)


def update(index: Index, learn: bool = True) -> None:
    """Brings the sketch (short codes for exact searches) up to the committed rows, and records it in `meta.json`.

    Makes a new sketch if there is none yet, or if the present sketch no longer suits the index. A few new rows may be
    left for the next update.
    learn: False to make no new sketch and only add rows to the present one.
    If the sketch cannot be written, the error is ignored; searches then scan the features.
    """
    facts, before = _updated(index, learn)
    if facts is not None and facts != before:
        with index.reading() as reader:
            before_commit = reader.state("generation")
        index.database.apply(Changes())  # a new generation, so that readers reload
        index.refresh()
        # a process that died may have left counts of an older generation, which the next build corrects
        in_step = index.meta.generation == before_commit
        generation = before_commit + 1 if in_step else index.meta.generation
        index.write_meta(replace(index.meta, sketch=facts.to_dict(), generation=generation))
        delete_unused(index)


def _updated(index: Index, learn: bool) -> tuple[SketchFacts | None, SketchFacts | None]:
    """Updates the files of the sketch for the committed rows, but not `meta.json`.

    Returns the facts to record about the sketch, and the facts that `meta.json` has recorded about the previous sketch;
    None for a sketch that does not exist. Both are equal if the sketch has not changed or cannot be written.
    learn: as for `update`.
    """
    with index.reading() as reader:
        rows, blocks = reader.state("rows"), reader.blocks()
        before = facts = SketchFacts.of(index.meta.sketch)
        if rows >= sketch_making.LEAST or before is not None:
            flat = FlatIndex(reader.shards, rows)
            with contextlib.suppress(OSError, SimsearchError):
                facts = sketch_making.updated(index.folder, before, flat, reader.rows, blocks, learn)
    return facts, before


def delete_unused(index: Index) -> None:
    """Deletes the folders of sketches and approximate searches in `derived/` that `meta.json` does not name.

    This does not disturb open readers, because they have loaded the files that they use into memory.
    """
    parameters = index.meta.search["parameters"]
    used = {derived.WORK_FOLDER, derived.MAP_FOLDER, parameters.get("folder") if isinstance(parameters, dict) else None}
    used.add(index.meta.sketch.get("folder"))
    files = index.folder.child(derived.FOLDER)
    for name in files.names() if files.exists(".") else ():
        if name not in used:
            with contextlib.suppress(OSError):
                files.remove(name)
