"""Reclaiming what removed items have left behind in the feature files.

Rows that no item owns lie between the others until the files are written anew: under the names of the next epoch,
without them, in the same order. One transaction then gives the items their new rows, and only after it the old files
are deleted. Before the commit nothing has changed; after it, what a kill leaves is swept by the next compaction.
Files before the first hole are not copied but linked.
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
from simsearch.indexing import sync
from simsearch.search import binary_codes
from simsearch.storage.feature_files import PREAMBLE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.storage.feature_files import FeatureFiles
    from simsearch.storage.folder import Folder
    from simsearch.storage.index import Index
    from simsearch.storage.reader import Reader

ROWS = 2048
"""Rows written, and synced, at once."""

_NAME = re.compile(r"(\d{6,})(?:\.(\d+))?\.f16")


@dataclass(frozen=True)
class CompactReport:
    """removed: rows that no item owned. reclaimed: bytes by which the feature files have shrunk, or would shrink."""

    items: int
    removed: int
    reclaimed: int


@dataclass(frozen=True)
class _Plan:
    """rows: of the items, ascending; ids: theirs; total: rows there are; kept: those before the first file with a hole.

    blocks: (first row, rows, CRC-32) of what was written at once.
    """

    rows: NDArray[np.int64]
    ids: NDArray[np.int64]
    total: int
    kept: int
    blocks: list[tuple[int, int, int]]


def compact(
    index: Index, dry_run: bool = False, progress: Callable[[int, int], None] = lambda done, total: None
) -> CompactReport:
    """Writes the feature files without the rows of removed items; ids stay, and readers go on with what they hold.

    progress: rows dealt with and their number. Raises IndexLockedError, SimsearchError where the disk does not take
    the files, and IndexDamagedError for rows that have lost their checksum: they are never given a new one.
    """
    with contextlib.nullcontext() if dry_run else index.writing():
        with index.reading() as reader:
            plan, old = _planned(reader), reader.shards
        removed = plan.total - len(plan.rows)
        new = old.at(old.epoch + 1) if removed else old
        before = _occupied(old.folder)
        if dry_run:
            after = (
                _expected(plan, old) if removed else sum(_bytes(old.folder, name) for name in _current(old, plan.total))
            )
            return CompactReport(len(plan.rows), removed, max(0, before - after))
        if removed:
            _delete_stale(old, plan.total)
            try:
                blocks = _written(plan, old, new, progress)
            except BaseException:
                with contextlib.suppress(OSError):  # what was written would only fill the disk
                    _delete_stale(old, plan.total)
                raise
            index.refresh()
            binary_codes.renumber(index.derived, index.meta.search["parameters"], plan.rows, old.epoch, new.epoch)
            moved = np.flatnonzero(plan.rows != np.arange(len(plan.rows)))
            pairs = zip(moved.tolist(), plan.ids[moved].tolist(), strict=True)
            index.database.renumber(pairs, blocks, len(plan.rows), new.epoch)
            sync.refresh_meta(index)
        _delete_stale(new, len(plan.rows))
        return CompactReport(len(plan.rows), removed, before - _occupied(old.folder))


def _planned(reader: Reader) -> _Plan:
    ids, rows = reader.ids()
    order = np.argsort(rows, kind="stable")
    ids, rows = ids[order], rows[order]
    total = reader.state("rows")
    if len(rows) and not 0 <= rows[0] <= rows[-1] < total:
        raise IndexDamagedError(f"items own rows {rows[0]} to {rows[-1]}, but there are {total}")
    holes = np.flatnonzero(rows != np.arange(len(rows)))
    first = int(holes[0]) if len(holes) else len(rows)
    per = reader.shards.rows_per_shard
    return _Plan(rows, ids, total, first // per * per, reader.blocks())


def _written(
    plan: _Plan, old: FeatureFiles, new: FeatureFiles, progress: Callable[[int, int], None]
) -> list[tuple[int, int, int]]:
    """Writes the files of the next epoch, and returns (first row, rows, CRC-32) of what was written at once."""
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

    for first, features, checksum in _blocks(plan, old):
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


def _blocks(plan: _Plan, old: FeatureFiles) -> Iterator[tuple[int, NDArray[np.float16], int]]:
    """(first row, features, CRC-32) of what was written at once. Raises IndexDamagedError if it is not that any more.

    Files that are kept are not read, but for a block that goes on in the next one.
    """
    done = 0
    for first, count, expected in plan.blocks:
        if first != done:
            raise IndexDamagedError(f"features: rows {done} to {first} have no checksum")
        done = first + count
        if done <= plan.kept:
            yield first, np.zeros((count, 0), np.float16), expected
            continue
        parts = [old.map(shard, stop)[start:stop] for shard, start, stop in old.spans(first, done)]
        features = np.concatenate(parts)
        found = zlib.crc32(features.tobytes())
        if found != expected:
            raise IndexDamagedError(
                f"features: rows {first} to {done - 1} have checksum {found:08x}, recorded was {expected:08x}"
            )
        yield first, features, expected
    if done != plan.total:
        raise IndexDamagedError(f"features: {plan.total} rows are recorded, checksums cover {done}")


def _link(old: FeatureFiles, new: FeatureFiles, shard: int) -> None:
    """The same file under another name; a copy where the file system knows no links."""
    folder, name = new.folder, new.name(shard)
    try:
        folder.link(old.name(shard), name)
    except FileNotFoundError as error:
        raise IndexDamagedError(f"{old.path(shard)}: {error.strerror}") from error
    except OSError:
        try:
            with (
                open(folder.open(old.name(shard)), "rb") as source,
                open(folder.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as copy,
            ):
                shutil.copyfileobj(source, copy)
                copy.flush()
                os.fsync(copy.fileno())
        except OSError as error:
            raise SimsearchError(f"{new.path(shard)} cannot be written: {error.strerror}") from error


def _current(shards: FeatureFiles, rows: int) -> set[str]:
    """The names of the files that `rows` rows lie in."""
    return {shards.name(shard) for shard, _, _ in shards.spans(0, rows)}


def _delete_stale(shards: FeatureFiles, rows: int) -> None:
    """Deletes all feature files but those that `rows` rows lie in."""
    current = _current(shards, rows)
    for name in shards.folder.names():
        if _NAME.fullmatch(name) and name not in current:
            shards.folder.unlink(name)
    shards.folder.sync()


def _occupied(folder: Folder) -> int:
    """The bytes of all feature files; of one under two names, once."""
    found: dict[int, int] = {}
    for name in folder.names():
        with contextlib.suppress(FileNotFoundError):  # another compaction
            if _NAME.fullmatch(name):
                facts = folder.stat(name)
                found[facts.st_ino] = facts.st_size
    return sum(found.values())


def _bytes(folder: Folder, name: str) -> int:
    """The size of a file; 0 if it is gone."""
    try:
        return folder.stat(name).st_size
    except FileNotFoundError:
        return 0


def _expected(plan: _Plan, shards: FeatureFiles) -> int:
    """The bytes of the feature files without the rows that no item owns."""
    files = -(-len(plan.rows) // shards.rows_per_shard)
    return files * PREAMBLE + len(plan.rows) * shards.row_bytes
