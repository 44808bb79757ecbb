"""Compaction: reclaims the disk space of removed items in the feature files.

When an item is removed, its row stays in the feature files, unused. A compaction writes new feature files without the
unused rows, in the same order. One transaction then assigns the items their new rows; after its commit, the old files
are deleted. A compaction that is interrupted before the commit changes nothing. If it is interrupted after the commit,
the next compaction deletes the remaining old files. Files before the first unused row are hard-linked, not copied.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from simsearch.errors import IndexDamagedError, SimsearchError
from simsearch.indexing import meta_update, sketches, upload_folder
from simsearch.search import binary_codes
from simsearch.storage.feature_files import PREAMBLE, no_such_row

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.storage.feature_files import FeatureFiles
    from simsearch.storage.folder import Folder
    from simsearch.storage.index import Index
    from simsearch.storage.reader import Reader

ROWS = 2048
"""Number of rows written and synced at a time."""

_NAME = re.compile(r"(\d{6,})(?:\.(\d+))?\.f16")


@dataclass(frozen=True)
class CompactReport:
    """The outcome of a compaction, or the expected outcome if it is a dry run.

    items: number of items. removed: number of unused rows. reclaimed: bytes by which the feature files shrink.
    """

    items: int
    removed: int
    reclaimed: int


@dataclass(frozen=True)
class _Plan:
    """The rows that a compaction keeps, and the files that it does not rewrite.

    rows: (n,) rows of the items, ascending. ids: (n,) ids of these items.
    total: number of rows in the old files, unused ones included.
    kept: number of rows in the files before the first file with an unused row. These files are linked, not rewritten.
    blocks: (first row, number of rows, CRC-32) of each block in the old files. A block is a range of rows that were
    written at once.
    """

    rows: NDArray[np.int64]
    ids: NDArray[np.int64]
    total: int
    kept: int
    blocks: list[tuple[int, int, int]]


def compact(
    index: Index, dry_run: bool = False, progress: Callable[[int, int], None] = lambda done, total: None
) -> CompactReport:
    """Rewrites the feature files without unused rows. Items keep their ids, and open readers keep the old files.

    dry_run: True to change nothing and only return the expected outcome.
    progress: called with the number of rows processed and their total.
    Raises IndexLockedError if another process is writing, SimsearchError if the files cannot be written, and
    IndexDamagedError if features do not match their checksums.
    """
    with contextlib.nullcontext() if dry_run else index.writing():
        with index.reading() as reader:
            plan, old = _make_plan(reader), reader.shards
        removed = plan.total - len(plan.rows)
        new = old.after(old.compactions + 1) if removed else old
        before = _used_bytes(old.folder)
        if dry_run:
            after = _expected_bytes(plan, old)
            if not removed:  # only old files left by an earlier compaction can be deleted
                after = sum(_file_bytes(old.folder, name) for name in _current(old, plan.total))
            return CompactReport(len(plan.rows), removed, max(0, before - after))
        if removed:
            _delete_stale(old, plan.total)
            try:
                blocks = _write(plan, old, new, progress)
            except BaseException:
                with contextlib.suppress(OSError):  # free the disk space of the new files
                    _delete_stale(old, plan.total)
                raise
            index.refresh()
            binary_codes.renumber(
                index.folder, index.meta.search["parameters"], plan.rows, old.compactions, new.compactions
            )
            moved = np.flatnonzero(plan.rows != np.arange(len(plan.rows)))
            pairs = zip(moved.tolist(), plan.ids[moved].tolist(), strict=True)
            index.database.renumber(pairs, blocks, len(plan.rows), new.compactions)
            meta_update.refresh_meta(index)
        _delete_stale(new, len(plan.rows))
        sketches.update(index)
        upload_folder.clean(index)
        return CompactReport(len(plan.rows), removed, before - _used_bytes(old.folder))


def _make_plan(reader: Reader) -> _Plan:
    """Finds the rows to keep. Raises IndexDamagedError if an item has a row that does not exist."""
    ids, rows = reader.ids_and_rows()
    order = np.argsort(rows, kind="stable")
    ids, rows = ids[order], rows[order]
    total = reader.state("rows")
    if len(rows) and not 0 <= rows[0] <= rows[-1] < total:
        raise no_such_row(f"items own rows {rows[0]} to {rows[-1]}", total)
    holes = np.flatnonzero(rows != np.arange(len(rows)))
    first = int(holes[0]) if len(holes) else len(rows)
    per_file = reader.shards.rows_per_shard
    return _Plan(rows, ids, total, first // per_file * per_file, reader.blocks())


def _write(
    plan: _Plan, old: FeatureFiles, new: FeatureFiles, progress: Callable[[int, int], None]
) -> list[tuple[int, int, int]]:
    """Writes the new feature files; returns (first row, number of rows, CRC-32) of each block of rows in them."""
    for shard, _, _ in old.spans(0, plan.kept):
        _link(old, new, shard)
    new.folder.sync()
    blocks: list[tuple[int, int, int]] = []
    waiting: list[NDArray[np.float16]] = []
    row = plan.kept

    def write() -> None:
        nonlocal row
        features = np.concatenate(waiting)
        if len(features):
            blocks.append((row, len(features), new.write(row, features)))
        row += len(features)
        waiting.clear()

    for first, features, checksum in _read_blocks(plan, old):
        last = first + len(features)
        if last <= plan.kept:
            blocks.append((first, len(features), checksum))
            continue
        if first < plan.kept:
            head = features[: plan.kept - first]
            blocks.append((first, len(head), zlib.crc32(head.tobytes())))
        begin, end = np.searchsorted(plan.rows, [max(first, plan.kept), last])
        waiting.append(features[plan.rows[begin:end] - first])
        if sum(map(len, waiting)) >= ROWS:
            write()
        progress(last, plan.total)
    if waiting:
        write()
    return blocks


def _read_blocks(plan: _Plan, old: FeatureFiles) -> Iterator[tuple[int, NDArray[np.float16], int]]:
    """Yields (first row, features, CRC-32) of each recorded block of rows in the old files.

    If all rows of a block lie in files that are not rewritten, the block is not read. An empty array of the shape
    (number of rows, 0) then stands for its features.
    Raises IndexDamagedError if features do not match their checksum or a row has no checksum.
    """
    done = 0
    for first, count, expected in plan.blocks:
        if first != done:
            raise IndexDamagedError(f"features: the next checksum should begin at row {done}, not at row {first}")
        done = first + count
        if done <= plan.kept:
            yield first, np.zeros((count, 0), np.float16), expected
            continue
        parts = [old.map(shard, stop)[start:stop] for shard, start, stop in old.spans(first, done)]
        features = np.concatenate(parts)
        found = zlib.crc32(features.tobytes())
        if found != expected:
            raise IndexDamagedError(
                f"features: rows {first} to {done - 1} have checksum {found:08x}, expected {expected:08x}"
            )
        yield first, features, expected
    if done != plan.total:
        raise IndexDamagedError(f"features: {plan.total} rows are recorded, checksums cover {done}")


def _link(old: FeatureFiles, new: FeatureFiles, shard: int) -> None:
    """Hard-links a feature file under its new name; copies it if the file system has no hard links."""
    folder, name = new.folder, new.name(shard)
    try:
        folder.link(old.name(shard), name)
    except FileNotFoundError as error:
        raise IndexDamagedError(f"{old.path(shard)}: {error.strerror}") from error
    except OSError:
        try:
            with (
                open(folder.open(old.name(shard)), "rb") as source,
                open(folder.create(name), "wb") as copy,
            ):
                shutil.copyfileobj(source, copy)
                copy.flush()
                os.fsync(copy.fileno())
        except OSError as error:
            raise SimsearchError(f"{new.path(shard)} cannot be written: {error.strerror}") from error


def _current(shards: FeatureFiles, rows: int) -> set[str]:
    """Returns the names of the files that contain the first `rows` rows."""
    return {shards.name(shard) for shard, _, _ in shards.spans(0, rows)}


def _delete_stale(shards: FeatureFiles, rows: int) -> None:
    """Deletes all feature files except those that contain the first `rows` rows."""
    current = _current(shards, rows)
    for name in shards.folder.names():
        if _NAME.fullmatch(name) and name not in current:
            shards.folder.unlink(name)
    shards.folder.sync()


def _used_bytes(folder: Folder) -> int:
    """Returns the total size of all feature files in bytes.

    A file that a compaction has hard-linked has two names until the old name is deleted. It counts once.
    """
    found: dict[int, int] = {}
    for name in folder.names():
        with contextlib.suppress(FileNotFoundError):  # deleted by another compaction
            if _NAME.fullmatch(name):
                facts = folder.stat(name)
                found[facts.st_ino] = facts.st_size
    return sum(found.values())


def _file_bytes(folder: Folder, name: str) -> int:
    """Returns the size of a file in bytes; 0 if it does not exist."""
    try:
        return folder.stat(name).st_size
    except FileNotFoundError:
        return 0


def _expected_bytes(plan: _Plan, shards: FeatureFiles) -> int:
    """Returns the size in bytes that the feature files will have without unused rows."""
    files = -(-len(plan.rows) // shards.rows_per_shard)
    return files * PREAMBLE + len(plan.rows) * shards.row_bytes
