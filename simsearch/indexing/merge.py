"""Merging: copies the items of one index into another index of the same model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from simsearch.errors import UsageError
from simsearch.indexing import meta_update, sketches
from simsearch.storage.compatible import check_same_features
from simsearch.storage.database import Changes
from simsearch.storage.reader import Item

if TYPE_CHECKING:
    from simsearch.storage.index import Index
    from simsearch.storage.reader import Reader

_ITEMS = 1024
"""Number of items copied and committed at a time."""


@dataclass(frozen=True)
class MergeReport:
    """The outcome of a merge.

    added: number of items copied.
    known: number of items skipped, since the target index already has items with the same source and path.
    """

    added: int
    known: int


def merge_indexes(
    target: Index, other: Index, progress: Callable[[int, int], None] = lambda done, total: None
) -> MergeReport:
    """Copies the items of `other`, with their features, into `target`; no features are computed.

    An interrupted merge keeps the items committed so far; merging again adds the rest.

    progress: called with the number of items processed and their total.
    Raises ModelMismatchError if the indexes differ in model, features or precision, UsageError if both are the same
    index, and IndexLockedError if another process is writing.
    """
    if target.path.resolve() == other.path.resolve():
        raise UsageError(f"{target.path} cannot be merged into itself")
    check_same_features(target, other)
    with target.writing(), other.reading() as reader:
        sources = _map_sources(target, other, reader)
        with target.reading() as own:
            taken = {(item.source, item.path) for item in own.items()}
            row = own.state("rows")
        known = done = 0
        total = reader.count()
        batch: list[Item] = []
        with contextlib.ExitStack() as always:
            always.callback(meta_update.refresh_meta, target)
            for item in reader.items():
                if (sources[item.source], item.path) in taken:
                    known += 1
                else:
                    batch.append(replace(item, id=0, source=sources[item.source]))
                if len(batch) == _ITEMS:
                    row = _append(target, reader, batch, row)
                    done, batch = done + len(batch), []
                    progress(done + known, total)
            if batch:
                _append(target, reader, batch, row)
                done += len(batch)
        sketches.update(target)
        progress(total, total)
    return MergeReport(done, known)


def _map_sources(target: Index, other: Index, reader: Reader) -> dict[int, int]:
    """Returns a mapping from the number of each source in `other` to its number in `target`.

    Sources that `target` does not have are added to it. reader: a reader of `other`.
    """
    with target.reading() as own:
        known = {(row.kind, target.root_of(row)): row.id for row in own.sources()}
    numbers = {}
    for row in reader.sources():
        place = row.kind, other.root_of(row)
        if place not in known:
            known[place] = target.database.add_source(*place, target.path.absolute(), row.options).id
        numbers[row.id] = known[place]
    return numbers


def _append(target: Index, other: Reader, items: list[Item], row: int) -> int:
    """Copies the features of items into `target`, commits the items, and returns the next free row.

    other: a reader of the other index. row: the first free row of `target`.
    """
    target.check_in_place()
    features = other.shards.read(np.array([item.row for item in items], np.int64))
    checksum = target.feature_files.write(row, features)
    placed = [replace(item, row=row + n) for n, item in enumerate(items)]
    target.database.apply(Changes(inserted=placed, blocks=[(row, len(items), checksum)]))
    return row + len(items)
