"""Queries on one snapshot of an index's database, and the classes of the items and sources that queries return.

A row is the position of an item's features in the feature files.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from simsearch.common import outside_json
from simsearch.errors import IndexDamagedError, ItemNotFoundError, SimsearchError, UsageError
from simsearch.storage import checksums, filters
from simsearch.storage.feature_files import FeatureFiles, no_such_row
from simsearch.storage.filters import Condition

if TYPE_CHECKING:
    from numpy.typing import NDArray


T = TypeVar("T")

_COLUMNS = "id, source, path, label, metadata, digest, size, stamp, width, height, row"
_LARGEST = 2**63 - 1  # SQLite's largest integer


EARLIEST = 315_532_800 * 10**9
"""The start of 1980, in nanoseconds since 1970. Smaller stamps are checksums, not times; see `sources.base.Entry`."""


def modified(stamp: int) -> datetime.datetime | None:
    """Returns the time (UTC) at which an image file was modified; None if the stamp is a checksum instead of a time.

    stamp: see `sources.base.Entry`.
    """
    return datetime.datetime.fromtimestamp(stamp // 10**9, datetime.UTC) if stamp >= EARLIEST else None


@dataclass(frozen=True, slots=True)
class Item:
    """One indexed image.

    source: the number of its source. path: relative to the source's root. digest: the SHA-256 of the file.
    size: of the file, in bytes. stamp: the time at which the file was modified, or a checksum; see
    `sources.base.Entry`.
    width, height: of the upright image, in pixels. row: the row of its features in the feature files.
    """

    id: int
    source: int
    path: str
    label: str | None
    metadata: dict[str, Any]
    digest: bytes
    size: int
    stamp: int
    width: int
    height: int
    row: int


@dataclass(frozen=True)
class SourceRow:
    """The record of a source of images, such as a folder or an archive.

    root: the absolute path or the address of the source. relative: the path relative to the index, which is still right
    if source and index are moved together. options: the settings of this source's builds, such as exclude.
    """

    id: int
    kind: str
    root: str
    relative: str
    options: dict[str, Any]


class Reader:
    """Queries on one snapshot of an index's database. shards: the feature files of the snapshot."""

    shards: FeatureFiles

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection, self._path = connection, path
        self._states: dict[str, Any] | None = None  # as `state` has read them

    @contextlib.contextmanager
    def _report_damage(self, what: str) -> Iterator[None]:
        """Converts a TypeError or ValueError in the block to IndexDamagedError. what: the data that is read, for the
        message.
        """
        try:
            yield
        except SimsearchError:
            raise
        except (TypeError, ValueError) as error:
            raise IndexDamagedError(f"{self._path}: {what} cannot be read: {error}") from error

    def state(self, key: str, default: int | None = None) -> int:
        """Returns a number that describes the whole index. Raises IndexDamagedError if it is missing or damaged.

        key: "rows" for the number of committed rows, or "generation" for a number that grows when the index changes.
        default: the result if the number is missing; None to raise the error.
        """
        if self._states is None:
            self._states = dict(self._connection.execute("SELECT key, value FROM state LIMIT 64").fetchall())
        value: Any = self._states.get(key, default)
        if value is None:
            raise IndexDamagedError(f"{self._path}: the state {key!r} is missing")
        if type(value) is not int or value < 0:
            raise IndexDamagedError(f"{self._path}: the state {key!r} is {str(value)[:40]!r}, not a whole number >= 0")
        return value

    def compactions(self) -> int:
        """Returns the number of compactions so far."""
        return self.state("epoch", 0)

    def count(self) -> int:
        """Returns the number of items."""
        return int(self._connection.execute("SELECT count(*) FROM items").fetchone()[0])

    def sources(self) -> list[SourceRow]:
        rows = self._connection.execute("SELECT id, kind, root, relative, options FROM sources ORDER BY id")
        with self._report_damage("a source"):
            return [_source(*row) for row in rows]

    def failures(self, source: int | None = None, below: str = "") -> list[tuple[int, str, str]]:
        """Returns (source number, path, reason) of each image that could not be indexed.

        source: the number of the only source to include; None for all sources.
        below: a file or folder of that source, to include only this file or the files in this folder; "" for all.
        """
        condition, parameters = _within(source, below)
        query = f"SELECT source, path, reason FROM failures {condition} ORDER BY source, path"
        rows = self._connection.execute(query, parameters)
        with self._report_damage("a failure"):
            return [(_typed(int, row[0]), os.fsdecode(_typed(bytes, row[1])), _typed(str, row[2])) for row in rows]

    def failure_count(self) -> int:
        return int(self._connection.execute("SELECT count(*) FROM failures").fetchone()[0])

    def label_count(self) -> int:
        """Returns the number of different labels."""
        return int(self._connection.execute("SELECT count(DISTINCT label) FROM items").fetchone()[0])

    def value_counts(self, field: str, limit: int = -1) -> dict[str, int]:
        """Returns each text in a field with the number of items that have it; see `filters.value_counts`."""
        return filters.value_counts(self._connection, field, limit)

    def has_items(self, source: int) -> bool:
        """Returns True if the source has any items."""
        found = self._connection.execute("SELECT 1 FROM items WHERE source = ? LIMIT 1", (source,)).fetchone()
        return found is not None

    def count_by_source(self) -> dict[int, int]:
        """Returns the number of items of each source; the keys are the numbers of the sources."""
        return dict(self._connection.execute("SELECT source, count(*) FROM items GROUP BY source").fetchall())

    def blocks(self) -> list[tuple[int, int, int]]:
        """Returns (first row, number of rows, CRC-32) of each range of rows written together, sorted by first row."""
        rows = self._connection.execute("SELECT first, rows, crc32 FROM blocks ORDER BY first")
        with self._report_damage("a checksum"):
            found = [(_typed(int, first), _typed(int, count), _typed(int, crc)) for first, count, crc in rows]
            if any(first < 0 or count <= 0 for first, count, _ in found):
                raise ValueError("a block of rows is out of range")
            return found

    def item(self, number: int) -> Item:
        """Returns the item with this id. Raises ItemNotFoundError, or UsageError if `number` is not an integer."""
        if not isinstance(number, int | np.integer) or isinstance(number, bool):
            raise UsageError(f"{number!r} is not the id of an item")
        if abs(int(number)) > _LARGEST:
            raise ItemNotFoundError(f"the index has no item {number}")
        found = self._connection.execute(f"SELECT {_COLUMNS} FROM items WHERE id = ?", (int(number),)).fetchone()
        if found is None:
            raise ItemNotFoundError(f"the index has no item {number}")
        return _item(found)

    def items(self, source: int | None = None, below: str = "", conditions: Sequence[Condition] = ()) -> Iterator[Item]:
        """Yields the items, sorted by id.

        source: the number of the only source whose items are yielded; None for all sources.
        below: a file or folder of that source, to yield only the items in it; "" for all.
        conditions: only items that meet all conditions are yielded. Raises UsageError for a condition that cannot be
        used.
        """
        permitted = set(self.rows(conditions).tolist()) if conditions else None
        condition, parameters = _within(source, below)
        for row in self._connection.execute(f"SELECT {_COLUMNS} FROM items {condition} ORDER BY id", parameters):
            item = _item(row)
            if permitted is None or item.row in permitted:
                yield item

    def items_at(self, rows: Sequence[int]) -> dict[int, Item]:
        """Returns a dict from each of the given rows to the item whose features are in it.

        Raises IndexDamagedError for a row without an item.
        """
        found: dict[int, Item] = {}
        for start in range(0, len(rows), 500):
            part = [int(row) for row in rows[start : start + 500]]
            marks = ",".join("?" * len(part))
            for values in self._connection.execute(f"SELECT {_COLUMNS} FROM items WHERE row IN ({marks})", part):
                found[values[-1]] = _item(values)
        for row in rows:
            if row not in found:
                raise IndexDamagedError(f"{self._path}: no item owns row {row} of the features")
        return found

    def ids_at(self, rows: NDArray[np.int64]) -> dict[int, int]:
        """Returns a dict from each of the given rows to the id of the item whose features are in it.

        Raises IndexDamagedError for a row without an item.
        """
        found: dict[int, int] = {}
        for start in range(0, len(rows), 500):
            part = rows[start : start + 500].tolist()
            marks = ",".join("?" * len(part))
            found |= self._connection.execute(f"SELECT row, id FROM items WHERE row IN ({marks})", part).fetchall()
        if len(found) < len(rows) and (missing := [row for row in rows.tolist() if row not in found]):
            raise IndexDamagedError(f"{self._path}: no item owns row {missing[0]} of the features")
        return found

    def find_content(self, digest: bytes) -> tuple[int, int, int] | None:
        """Returns (row of features, width, height) of an item whose image file has this SHA-256, or None."""
        query = "SELECT row, width, height FROM items WHERE digest = ? LIMIT 1"
        found: tuple[int, int, int] | None = self._connection.execute(query, (digest,)).fetchone()
        return found

    def ids_of(self, digest: bytes) -> list[int]:
        """Returns the ids of all items whose image file has this SHA-256, ascending."""
        query = "SELECT id FROM items WHERE digest = ? ORDER BY id"
        return [int(row[0]) for row in self._connection.execute(query, (digest,))]

    def row_of(self, digest: bytes) -> int | None:
        """Returns the row of the features of an item whose image file has this SHA-256; None without such an item."""
        found = self.find_content(digest)
        return None if found is None else found[0]

    def rows(self, conditions: Iterable[Condition] = ()) -> NDArray[np.int64]:
        """Returns the rows of the features of the items that meet all conditions: (n,) int64, ascending.

        Raises UsageError for a condition that cannot be used, and IndexDamagedError.
        """
        wanted = list(conditions)
        try:
            with self._report_damage("an item's row"):
                selected = filters.select(self._connection, "row", wanted)
                found = np.fromiter((_typed(int, row[0]) for row in selected), np.int64)
            filters.check_fields(self._connection, wanted, len(found))
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_TOOBIG}:
                raise
            raise UsageError(f"a filter cannot be used: {error}") from error
        found.sort()
        if (found[1:] == found[:-1]).any():
            raise IndexDamagedError(f"{self._path}: two items own the same row")
        total = self.state("rows")
        if len(found) and not 0 <= found[0] <= found[-1] < total:
            stray = found[0] if found[0] < 0 else found[-1]
            raise no_such_row(f"{self._path}: an item owns row {stray}", total)
        return found

    def stamps(self, conditions: Iterable[Condition] = ()) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the ids and the stamps of the items that meet all conditions: two arrays (n,) int64.

        A stamp is the time at which a file was modified, or a checksum; see `modified`.
        Raises UsageError for a condition that cannot be used.
        """
        rows = self._connection.execute("SELECT id, row, stamp FROM items").fetchall()
        with self._report_damage("an item's stamp"):
            values = np.array(rows, np.int64).reshape(-1, 3)
        if wanted := list(conditions):
            values = values[np.isin(values[:, 1], self.rows(wanted))]
        return values[:, 0], values[:, 2]

    def ids_and_rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the ids of all items and the rows of their features: two arrays (n,) int64, sorted by id."""
        rows = self._connection.execute("SELECT id, row FROM items ORDER BY id").fetchall()
        with self._report_damage("an item's row"):
            pairs = np.array([(_typed(int, number), _typed(int, row)) for number, row in rows], np.int64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    def sample_ids(self, count: int) -> list[int]:
        """Returns up to `count` ids of items, ascending and spread evenly from the lowest id to the highest."""
        low, high = self._connection.execute("SELECT min(id), max(id) FROM items").fetchone()
        if low is None:
            return []
        points = np.linspace(low, high, count).round().astype(int).tolist()
        next_one = "SELECT id FROM items WHERE id >= ? ORDER BY id LIMIT 1"
        return sorted({int(self._connection.execute(next_one, (point,)).fetchone()[0]) for point in points})

    def integrity(self) -> list[str]:
        """Returns the problems that SQLite's integrity check finds, one line each."""
        found = [row[0] for row in self._connection.execute("PRAGMA integrity_check(10)")]
        return [] if found == ["ok"] else found

    def checksum_problems(self) -> list[str]:
        """Returns a message for each recorded checksum that does not match the content of the database."""
        return checksums.problems(self._connection)


def _within(source: int | None, below: str) -> tuple[str, tuple[Any, ...]]:
    """Returns an SQL WHERE clause that selects items of a source, and its parameters.

    source: the number of the source; None for all items of all sources, without regard to `below`.
    below: a file or folder of the source, to select only the items in it; "" for all.
    """
    if source is None:
        return "", ()
    if not below:
        return "WHERE source = ?", (source,)
    path = os.fsencode(below)
    return "WHERE source = ? AND (path = ? OR (path >= ? AND path < ?))", (source, path, path + b"/", path + b"0")


def _item(values: Sequence[Any]) -> Item:
    number, source, path, label, metadata, *rest = values
    digest, *numbers = rest
    try:
        if type(path) is not bytes or type(digest) is not bytes or not (label is None or type(label) is str):
            raise TypeError("path, digest or label is of the wrong type")
        if not all(type(each) is int for each in (number, source, *numbers)):
            raise TypeError("a number has the wrong type")
        facts = outside_json.parse_lenient(metadata) if metadata else {}
        return Item(number, source, os.fsdecode(path), label, _typed(dict, facts), *rest)
    except (TypeError, ValueError) as error:
        raise IndexDamagedError(f"items.sqlite: item {number} cannot be read: {error}") from error


def _source(number: Any, kind: Any, root: Any, relative: Any, options: Any) -> SourceRow:
    facts = _typed(dict, outside_json.parse(options))
    places = os.fsdecode(_typed(bytes, root)), os.fsdecode(_typed(bytes, relative))
    return SourceRow(_typed(int, number), _typed(str, kind), *places, facts)


def _typed(kind: type[T], value: Any) -> T:
    """Returns `value`. Raises TypeError if its type is not `kind`, which is possible in a damaged database."""
    if type(value) is not kind:
        raise TypeError(f"{kind.__name__} is expected, not {type(value).__name__}")
    return value
