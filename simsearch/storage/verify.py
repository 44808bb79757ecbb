"""Checks that the files of an index are intact and consistent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simsearch.errors import IndexDamagedError, SimsearchError, UsageError
from simsearch.storage import components, derived
from simsearch.storage.folder import error_for
from simsearch.storage.index import Index
from simsearch.storage.meta import Meta

if TYPE_CHECKING:
    from collections.abc import Callable

    from simsearch.storage.protocols import OpenIndex
    from simsearch.storage.reader import Reader


@dataclass(frozen=True)
class VerifyReport:
    """The result of `verify`.

    problems: a message for each problem; empty if the index is intact.
    items, rows: the numbers of items and rows that the database has recorded.
    checked: the number of rows whose checksum was computed.
    """

    items: int
    rows: int
    checked: int
    problems: tuple[str, ...]


def verify(index: OpenIndex, progress: Callable[[int, int], None] = lambda done, total: None) -> VerifyReport:
    """Checks that the files of an index are intact and agree with each other. Reads all features once.

    Readers and a writer can continue meanwhile. If problems are found and the index was compacted meanwhile, the check
    starts again, since the cause may be just that the compaction has replaced files.
    progress: called with the number of rows checked and their total.
    Raises UsageError for a Milvus collection.
    """
    if not isinstance(index, Index):
        raise UsageError(
            f"{index.path} is a Milvus collection, which has no files to verify",
            hint="verify the index on disk, and push it again",
        )
    while True:
        compactions, report = _verified(index, progress)
        if not report.problems or compactions == index.feature_files.compactions:
            return report


def _verified(index: Index, progress: Callable[[int, int], None]) -> tuple[int, VerifyReport]:
    with index.reading() as reader:
        problems = [f"items.sqlite: {line}" for line in reader.integrity()]
        try:
            components.read_recorded(index.folder, index.meta)
        except IndexDamagedError as error:
            problems.append(str(error))
        items, rows = reader.count(), reader.state("rows")
        if problem := Meta.checksum_problem(index.folder):
            problems.append(f"meta.json: {problem}")
        problems += _check_derived(index)
        try:
            problems += [f"items.sqlite: {line}" for line in reader.checksum_problems()]
            problems += _check_rows(index, reader, items, rows)
        except IndexDamagedError as error:
            problems.append(str(error))
        checked, done = 0, 0
        progress(0, rows)
        for first, count, expected in reader.blocks():
            if first > done:
                problems.append(f"features: rows {done} to {first - 1} have no checksum")
            elif first < done:
                problems.append(f"features: rows {first} to {min(done, first + count) - 1} have several checksums")
            done = max(done, first + count)
            try:
                found = reader.shards.checksum(first, count)
            except IndexDamagedError as error:
                problems.append(str(error))
                continue
            checked += count
            if found != expected:
                last = first + count - 1
                problems.append(f"features: rows {first} to {last} have checksum {found:08x}, expected {expected:08x}")
            progress(done, rows)
        if done != rows:
            problems.append(f"features: {rows} rows are recorded, checksums cover {done}")
        for shard in range(-(-rows // reader.shards.rows_per_shard)):
            problems += _check_shard(reader, shard)
            if not reader.shards.folder.exists(reader.shards.name(shard)):
                break
    return reader.shards.compactions, VerifyReport(items, rows, checked, tuple(dict.fromkeys(problems)))


def _check_shard(reader: Reader, shard: int) -> list[str]:
    try:
        problem = reader.shards.check_preamble(shard)
    except OSError as error:
        problem = _problem(error_for(reader.shards.path(shard), error))
    return [problem] if problem else []


def _problem(error: SimsearchError) -> str:
    """Returns the message of an IndexDamagedError; raises any other error."""
    if not isinstance(error, IndexDamagedError):
        raise error
    return str(error)


def _check_derived(index: Index) -> list[str]:
    try:
        damaged = derived.problems(index.folder)
    except SimsearchError as error:
        damaged = [_problem(error)]
    return [f"{line}; searches are exact until `simsearch tune` makes the approximate search again" for line in damaged]


def _check_rows(index: Index, reader: Reader, items: int, rows: int) -> list[str]:
    problems = []
    try:
        reader.rows()
    except IndexDamagedError as error:
        problems.append(str(error))
    known = {source.id for source in reader.sources()}
    owners = {
        "items": (item.source for item in reader.items()),
        "failures": (source for source, _, _ in reader.failures()),
    }
    for what, sources in owners.items():
        if orphans := sum(source not in known for source in sources):
            problems.append(f"items.sqlite: {orphans} {what} belong to no source")
    meta = index.meta
    if meta.generation == reader.state("generation") and (meta.items, meta.rows) != (items, rows):
        problems.append(f"meta.json counts {meta.items} items and {meta.rows} rows, the database {items} and {rows}")
    return problems
