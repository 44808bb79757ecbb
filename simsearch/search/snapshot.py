"""Snapshots of an index for searching: each is the index's state after one change, reused until the next change."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common.lazy import LazyModule
from simsearch.errors import SimsearchError
from simsearch.models.onnx import runtime
from simsearch.search.exact import FlatIndex
from simsearch.storage.derived import structure_folder
from simsearch.storage.protocols import KnownRows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.images.sources.resolve import Sources
    from simsearch.search import binary_codes, gpu, sketch_files
    from simsearch.search.ann import AnnIndex
    from simsearch.search.sketch import Sketch
    from simsearch.storage.index import Index
    from simsearch.storage.reader import Reader
else:  # imported on use: a small index on the CPU needs none of these
    binary_codes = LazyModule("simsearch.search.binary_codes")
    gpu = LazyModule("simsearch.search.gpu")
    sketch_files = LazyModule("simsearch.search.sketch_files")

log = logging.getLogger("simsearch")


@dataclass(frozen=True)
class Snapshot:
    """The state of an index after one change.

    generation: a number that grows with every change of the index.
    flat: the exact search over all rows.
    live: the rows that belong to items, ascending; None if all rows do.
    sources: the index's sources.
    """

    generation: int
    flat: FlatIndex
    live: NDArray[np.int64] | None
    sources: Sources


ROWS_PER_QUERY = 100
"""The ids of n rows are read after n / ROWS_PER_QUERY queries. By then, the queries have spent about as much time on
reading the ids of their matches as it takes to read all ids.
"""


class Snapshots:
    """Provides snapshots of an index for searches: the same snapshot until the index changes. Safe for many threads.

    device: the device of exact searches: "cpu", "auto" (the same as "cpu"), "cuda" (all GPUs) or "cuda:N" (one GPU).
    """

    def __init__(self, index: Index, device: str = "cpu") -> None:
        self.index, self.device = index, device
        self._lock = threading.RLock()
        self._last: Snapshot | None = None
        self._structure: tuple[Any, AnnIndex | None] = (None, None)
        self._sketch: tuple[Any, Sketch | None] = (None, None)
        self._asked: tuple[Snapshot | None, int] = (None, 0)  # the number of queries for ids of this snapshot
        self._known: tuple[int, KnownRows] | None = None  # for `known`, with the generation of the index

    def reading(self) -> contextlib.AbstractContextManager[Reader]:
        """Returns a context manager that opens a reader of the index's present state."""
        return self.index.reading()

    def current(self, reader: Reader) -> Snapshot:
        """Returns the snapshot of the state that the reader sees. Raises DeviceError if `device` is not available."""
        generation = reader.state("generation")
        with self._lock:
            last = self._last
            if last is not None and last.generation == generation:
                if self.index.meta.generation < generation:  # meta.json is written after the commit
                    self.index.refresh()
                return last
            rows = reader.state("rows")
            live = None if reader.count() == rows else reader.rows()
            same = last is not None and last.flat.rows == rows and last.flat.shards is reader.shards
            self.index.refresh()
            flat = last.flat if last is not None and same else self._flat(reader, rows)
            self._last, self._known = Snapshot(generation, flat, live, self.index.sources(reader)), None
            return self._last

    def structure(self, reader: Reader) -> AnnIndex | None:
        """Returns the approximate search that `simsearch tune` chose, loaded on first use; None if there is none.

        If its files are missing or damaged, logs a warning once and returns None, so that searches are exact.
        """
        compactions = reader.compactions()  # of the reader's state: each compaction renumbers the rows
        with self._lock:
            parameters = self.index.meta.search["parameters"]
            name = parameters.get("folder", "") if isinstance(parameters, dict) else ""
            key = name, compactions, parameters.get("encoded") if name else None
            if self._structure[0] != key:
                loaded = None
                try:
                    if name:
                        loaded = binary_codes.load(structure_folder(self.index.folder, name), parameters, compactions)
                except (SimsearchError, OSError) as error:
                    log.warning("searches are exact: %s; `simsearch tune` makes the approximate search again", error)
                self._structure = key, loaded
            return self._structure[1]

    def known(self) -> KnownRows | None:
        """Returns what a search for ids needs, if the index has not changed since `learn` read it; else None."""
        known = self._known
        return known[1] if known is not None and self.index.database.generation() == known[0] else None

    def learn(self, reader: Reader, queries: int) -> None:
        """Counts the queries of a search for ids; after enough of them, reads the ids of all rows for `known`."""
        snapshot, structure = self.current(reader), self.structure(reader)
        with self._lock:
            asked = queries + (self._asked[1] if self._asked[0] is snapshot else 0)
            self._asked = snapshot, asked
            if asked * ROWS_PER_QUERY < snapshot.flat.rows or self.index.meta.generation < snapshot.generation:
                return  # it is too early, or `current` must still read what the writer tells in meta.json
            self._asked = snapshot, 0  # other threads do not read the ids too
        table = np.full(snapshot.flat.rows, -1, np.int64)
        ids, rows = reader.ids_and_rows()
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(table):
            return  # damaged; the search says so
        table[rows] = ids
        with self._lock:
            if self._last is snapshot:
                self._known = snapshot.generation, KnownRows(snapshot.flat, structure, snapshot.live, table)

    def close(self) -> None:
        """Releases the snapshot, the approximate search and the sketch."""
        with self._lock:
            self._last, self._structure, self._sketch = None, (None, None), (None, None)
            self._asked, self._known = (None, 0), None

    def sketch(self, compactions: int) -> Sketch | None:
        """Returns the sketch, which makes exact searches fast; None if there is none.

        The sketch is loaded on first use. If its files are missing or damaged, logs a warning once and returns None, so
        that searches scan all rows.
        compactions: how often the feature files to search have been compacted. Returns None if the sketch was made
        after another number of compactions, because each compaction renumbers the rows.
        """
        with self._lock:
            if not self.index.meta.sketch:
                return None
            facts = sketch_files.SketchFacts.of(self.index.meta.sketch)
            if facts is None or not facts.folder or facts.compactions != compactions:
                return None
            if self._sketch[0] != facts:
                loaded = None
                try:
                    with self.index.reading() as reader:
                        same = sketch_files.identity(reader.blocks(), facts.rows) == facts.blocks
                        same = same and reader.compactions() == compactions
                    if same:
                        loaded = sketch_files.load(self.index.folder, facts, self.index.meta.dimension)
                except (SimsearchError, OSError) as error:
                    log.warning("searches scan all items: %s; `simsearch build` makes the sketch again", error)
                self._sketch = facts, loaded
            return self._sketch[1]

    def exact_facts(self, reader: Reader) -> dict[str, Any]:
        """Returns facts about the exact searches of the index, for `simsearch info`, by these keys.

        proved: True if there is a sketch, which excludes most items before their features are read. If False, the other
        keys are missing.
        excluded: the fraction of items that a search for ten neighbours excludes on average; None if not measured.
        rows: the number of rows in the sketch.
        widths: the number of bytes of a narrow and of a wide code in the sketch.
        """
        found = self.sketch(reader.compactions())
        facts = None if found is None else sketch_files.SketchFacts.of(self.index.meta.sketch)
        if facts is None or found is None:
            return {"proved": False}
        excluded = 1 - facts.left[1] if len(facts.left) == 2 else None
        return {"proved": True, "excluded": excluded, "rows": found.rows, "widths": facts.widths}

    def _flat(self, reader: Reader, rows: int) -> FlatIndex:
        """Returns the exact search over all rows: on GPUs if `device` names them and the rows fit, else on the CPU."""
        if not self.device.startswith("cuda"):
            return FlatIndex(reader.shards, rows, sketch=functools.partial(self.sketch, reader.shards.compactions))
        runtime.choose_device(self.device)

        def devices(count: int) -> list[str]:
            return gpu.devices_for(self.device, count, self.index.meta.dimension)

        last = self._last
        before = last.flat if last is not None and last.flat.shards is reader.shards else None
        return FlatIndex(reader.shards, rows, devices, before)
