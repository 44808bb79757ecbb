"""Updates `meta.json` after a commit: counts, distances between items, the approximate search and its recall."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.indexing import ann_maintenance
from simsearch.search import similarity
from simsearch.search.exact import FlatIndex

if TYPE_CHECKING:
    from simsearch.storage.index import Index

ALWAYS = 128
"""Up to this number of items, the scale of similarities is measured after every change."""


def refresh_meta(index: Index, measure: bool = True, engine: str | None = None) -> None:
    """Updates `meta.json` after a commit. The caller holds the writer lock.

    measure: False to skip the measurement of the recall (see `ann_maintenance.update`).
    engine: the library and device that computed the new features; None keeps the recorded value.
    """
    with index.reading() as reader:
        generation, items, rows = reader.state("generation"), reader.count(), reader.state("rows")
        failures = reader.failure_count()
        index.refresh()  # another process may have tuned the index
        meta = index.meta
        known = meta.similarity
        if (meta.generation, meta.items) == (generation, items) and (known or items < 3):
            return
        distances, measured = meta.distances, meta.distances_of
        fresh: list[float] = []
        grown = not 0.8 * measured <= items <= 1.25 * measured
        if items >= 2 and grown and (items >= similarity.ENOUGH or not distances or measured):
            live = reader.rows()
            sample = np.random.default_rng(0).choice(live, min(similarity.SAMPLE, len(live)), replace=False)
            fresh = list(similarity.quantiles(reader.shards.read(np.sort(sample))))
            distances, measured = fresh, items
        if not known or items <= ALWAYS or _has_changed(known, items, rows):
            scale = similarity.measure(FlatIndex(reader.shards, rows), reader.rows(), fresh)
            known = {} if scale is None else {**scale.to_dict(), "items": items, "rows": rows}
        search = meta.search
        if search["kind"] != "exact":
            flat = FlatIndex(reader.shards, rows)
            search = ann_maintenance.update(index.folder, search, flat, reader.rows(), measure)
    index.write_meta(
        replace(
            meta,
            generation=generation,
            items=items,
            rows=rows,
            failures=failures,
            distances=distances,
            distances_of=measured,
            similarity=known,
            engine=engine or meta.engine,
            search=search,
        )
    )


def _has_changed(known: dict[str, Any], items: int, rows: int) -> bool:
    """Returns True if about a quarter of the items have been added or removed since `known` was measured.

    known: the entry `similarity` of `meta.json`.
    items, rows: the present number of items, and of rows in the feature files.
    """
    before_items, before_rows = known.get("items", 0), known.get("rows", 0)
    return not 0.8 * before_items <= items <= 1.25 * before_items or rows - before_rows > 0.25 * items
