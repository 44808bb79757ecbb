"""The items of an index in SQLite, whose commit is the index's commit.

Rows of features are written and synced first, then one transaction records the items that own them, so a process that
dies at any moment leaves a state that was committed. Readers never wait: the database is in write-ahead-log mode and
each operation sees one snapshot.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.errors import IndexDamagedError, ItemNotFoundError, SimsearchError, UsageError
from simsearch.filters import Condition, text
from simsearch.shards import Shards

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SCHEMA = """
CREATE TABLE IF NOT EXISTS state (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sources (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, root BLOB NOT NULL, relative BLOB NOT NULL, options TEXT NOT NULL,
    UNIQUE (kind, root));
CREATE TABLE IF NOT EXISTS items (
    id INTEGER PRIMARY KEY AUTOINCREMENT, source INTEGER NOT NULL REFERENCES sources, path BLOB NOT NULL,
    label TEXT, metadata TEXT, digest BLOB NOT NULL, size INTEGER NOT NULL, stamp INTEGER NOT NULL,
    width INTEGER NOT NULL, height INTEGER NOT NULL, row INTEGER NOT NULL UNIQUE,
    UNIQUE (source, path));
CREATE INDEX IF NOT EXISTS items_by_digest ON items (digest);
CREATE INDEX IF NOT EXISTS items_by_label ON items (label);
CREATE TABLE IF NOT EXISTS failures (
    source INTEGER NOT NULL REFERENCES sources, path BLOB NOT NULL, reason TEXT NOT NULL,
    PRIMARY KEY (source, path)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blocks (first INTEGER PRIMARY KEY, rows INTEGER NOT NULL, crc32 INTEGER NOT NULL);
INSERT OR IGNORE INTO state VALUES ('rows', 0), ('generation', 0);
"""
_COLUMNS = "id, source, path, label, metadata, digest, size, stamp, width, height, row"
_LARGEST = 2**63 - 1  # SQLite's integers
_ELSEWHERE = {
    getattr(sqlite3, f"SQLITE_{name}") for name in ("CANTOPEN", "PERM", "AUTH", "FULL", "BUSY", "READONLY", "IOERR")
}
"""What SQLite says when not the file is at fault but the disk, its being full, or another process."""


@dataclass(frozen=True, slots=True)
class Item:
    """One indexed image. path is relative to its source's root; row is where its features lie."""

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
    """A source as recorded: its absolute root, and the same relative to the index, for when both have moved."""

    id: int
    kind: str
    root: str
    relative: str
    options: dict[str, Any]


@dataclass
class Changes:
    """What one transaction applies. Rows named by items must have been written to the shards before."""

    inserted: list[Item] = field(default_factory=list)  # id 0: assigned here
    updated: list[Item] = field(default_factory=list)  # replaced as a whole, by id
    deleted: list[int] = field(default_factory=list)
    failed: list[tuple[int, str, str]] = field(default_factory=list)  # source, path, reason
    cleared: list[tuple[int, str]] = field(default_factory=list)  # failures that are no more
    blocks: list[tuple[int, int, int]] = field(default_factory=list)  # first row, rows, CRC-32

    def __bool__(self) -> bool:
        return any((self.inserted, self.updated, self.deleted, self.failed, self.cleared, self.blocks))


class Store:
    """The database `items.sqlite`. Use from any number of threads; writing is for the holder of the writer lock.

    shards: the feature files, of any epoch; each reader is given those of its own.
    """

    def __init__(self, path: Path, *, create: bool = False, shards: Shards | None = None) -> None:
        self.path, self._shards = path, shards
        self._idle: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._closed = False
        self._writable = os.access(path.parent, os.W_OK)
        if not create and not path.exists():
            raise IndexDamagedError(f"{path} is missing")
        if create:
            with self._mapped(), self._connection() as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(_SCHEMA)

    # -- connections

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._closed:
                raise UsageError(f"the index {self.path.parent} has been closed")
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = self._connect()
        try:
            yield connection
        finally:
            if connection.in_transaction:
                connection.rollback()
            with self._lock:
                reusable = self._writable and not self._closed  # without write access, blind to what others write
                if reusable:
                    self._idle.append(connection)
            if not reusable:
                connection.close()

    def _connect(self) -> sqlite3.Connection:
        # Without write access SQLite cannot make the files that readers share with writers, and need not: where they
        # are missing, nobody is writing.
        alone = not self._writable and not self.path.with_name(self.path.name + "-wal").exists()
        name = "file:" + _quote(self.path) + ("?immutable=1" if alone else "")
        connection = sqlite3.connect(name, uri=True, timeout=60, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        """SQLite's errors as ours. Its message about a damaged schema need not be UTF-8."""
        try:
            yield
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
            denied = code & 0xFF != sqlite3.SQLITE_CANTOPEN or not os.access(self.path, os.R_OK)
            if code & 0xFF in _ELSEWHERE and denied and code != sqlite3.SQLITE_IOERR_SHORT_READ:
                raise SimsearchError(f"{self.path} cannot be used: {error}") from error
            raise IndexDamagedError(f"{self.path}: {error}") from error

    @contextlib.contextmanager
    def reading(self) -> Iterator[Reader]:
        """One snapshot of the database, and the feature files that belong to it."""
        with self._mapped():
            while True:
                with self._connection() as connection:
                    connection.execute("BEGIN")
                    reader = Reader(connection, self.path)
                    if self._attach(reader):
                        yield reader
                        return

    def _attach(self, reader: Reader) -> bool:
        """Gives a reader its feature files; False if a compaction has deleted them before they could be opened."""
        if self._shards is None:
            return True
        epoch, rows = reader.epoch(), reader.state("rows")
        with self._lock:
            if self._shards.epoch != epoch:
                self._shards = self._shards.at(epoch)
            reader.shards = self._shards
            if reader.shards.hold(rows):
                return True
        with self._connection() as connection:  # a later snapshot; if it has the same epoch, the files are damaged
            return Reader(connection, self.path).epoch() == epoch

    def close(self) -> None:
        """Closes all idle connections; no more are opened."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def content(self, digest: bytes) -> tuple[int, int, int] | None:
        """For a file's SHA-256, the row of its features and the image's width and height, as last committed."""
        question = "SELECT row, width, height FROM items WHERE digest = ? LIMIT 1"
        with self._mapped(), self._connection() as connection:
            found: tuple[int, int, int] | None = connection.execute(question, (digest,)).fetchone()
        return found

    # -- writing

    def apply(self, changes: Changes) -> None:
        """Commits `changes` as a whole, durably."""
        with self._mapped(), self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("DELETE FROM items WHERE id = ?", [(number,) for number in changes.deleted])
            connection.executemany(
                "UPDATE items SET source=?, path=?, label=?, metadata=?, digest=?, size=?, stamp=?, width=?, height=?,"
                " row=? WHERE id=?",
                [(*_values(item), item.id) for item in changes.updated],
            )
            connection.executemany(
                "INSERT INTO items (source, path, label, metadata, digest, size, stamp, width, height, row)"
                " VALUES (?,?,?,?,?,?,?,?,?,?)",
                [_values(item) for item in changes.inserted],
            )
            connection.executemany(
                "INSERT OR REPLACE INTO failures VALUES (?,?,?)",
                [(source, os.fsencode(path), text(reason)) for source, path, reason in changes.failed],
            )
            connection.executemany(
                "DELETE FROM failures WHERE source=? AND path=?",
                [(source, os.fsencode(path)) for source, path in changes.cleared],
            )
            connection.executemany("INSERT INTO blocks VALUES (?,?,?)", changes.blocks)
            rows = sum(block[1] for block in changes.blocks)
            connection.execute("UPDATE state SET value = value + ? WHERE key = 'rows'", (rows,))
            connection.execute("UPDATE state SET value = value + 1 WHERE key = 'generation'")
            connection.execute("COMMIT")

    def renumber(
        self, rows: Iterable[tuple[int, int]], blocks: Sequence[tuple[int, int, int]], total: int, epoch: int
    ) -> None:
        """Commits the result of a compaction: the feature files of `epoch`, which hold `total` rows.

        rows: for each item that moves, its new row and its id, by ascending row. blocks: as in `Changes`, all of them.
        """
        with self._mapped(), self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("UPDATE items SET row = ? WHERE id = ?", rows)
            connection.execute("DELETE FROM blocks")
            connection.executemany("INSERT INTO blocks VALUES (?,?,?)", blocks)
            connection.execute("UPDATE state SET value = ? WHERE key = 'rows'", (total,))
            connection.execute("INSERT OR REPLACE INTO state VALUES ('epoch', ?)", (epoch,))
            connection.execute("UPDATE state SET value = value + 1 WHERE key = 'generation'")
            connection.execute("COMMIT")

    def add_source(
        self, kind: str, root: str, index: Path, options: dict[str, Any], absorbed: Sequence[tuple[int, str]] = ()
    ) -> SourceRow:
        """Finds or records a source, with the options last given for it.

        absorbed: narrower sources whose items become its own, each with the relative path between their roots.
        """
        relative = os.path.relpath(root, index) if os.path.isabs(root) else root
        with self._mapped(), self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                "INSERT INTO sources (kind, root, relative, options) VALUES (?,?,?,?)"
                " ON CONFLICT (kind, root) DO UPDATE SET options = excluded.options, relative = excluded.relative",
                (kind, os.fsencode(root), os.fsencode(relative), json.dumps(options)),
            )
            found = connection.execute(
                "SELECT id FROM sources WHERE kind=? AND root=?", (kind, os.fsencode(root))
            ).fetchone()
            for narrow, prefix in absorbed:
                _absorb(connection, narrow, found[0], prefix)
            connection.execute("COMMIT")
        return SourceRow(found[0], kind, root, relative, options)

    def relocate(self, source: int, root: str, index: Path) -> None:
        """Points a source to where its images are now."""
        with self._mapped(), self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("UPDATE state SET value = value + 1 WHERE key = 'generation'")
            try:
                connection.execute(
                    "UPDATE sources SET root=?, relative=? WHERE id=?",
                    (os.fsencode(root), os.fsencode(os.path.relpath(root, index)), source),
                )
            except sqlite3.IntegrityError:
                raise UsageError(f"{root} is already another source of this index") from None
            connection.execute("COMMIT")

    def forget(self, number: int) -> None:
        """Removes a source that no item belongs to."""
        with self._mapped(), self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DELETE FROM failures WHERE source = ?", (number,))
            connection.execute(
                "DELETE FROM sources WHERE id = ? AND NOT EXISTS (SELECT 1 FROM items WHERE source = ?)",
                (number, number),
            )
            connection.execute("COMMIT")


class Reader:
    """Questions to one snapshot of the database. shards: the feature files that its rows lie in."""

    shards: Shards

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection, self._path = connection, path

    @contextlib.contextmanager
    def _legible(self, what: str) -> Iterator[None]:
        """Values that no writer wrote as damage."""
        try:
            yield
        except (TypeError, ValueError) as error:
            raise IndexDamagedError(f"{self._path}: {what} cannot be read: {error}") from error

    def state(self, key: str) -> int:
        """'rows': how many rows of features are committed. 'generation': grows with every change."""
        found = self._connection.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
        if found is None:
            raise IndexDamagedError(f"{self._path}: the state {key!r} is missing")
        return int(found[0])

    def epoch(self) -> int:
        """How often the feature files have been written anew."""
        found = self._connection.execute("SELECT value FROM state WHERE key = 'epoch'").fetchone()
        return 0 if found is None else int(found[0])

    def count(self) -> int:
        """The number of items."""
        return int(self._connection.execute("SELECT count(*) FROM items").fetchone()[0])

    def sources(self) -> list[SourceRow]:
        rows = self._connection.execute("SELECT id, kind, root, relative, options FROM sources ORDER BY id")
        with self._legible("a source"):
            return [SourceRow(r[0], r[1], os.fsdecode(r[2]), os.fsdecode(r[3]), json.loads(r[4])) for r in rows]

    def failures(self, source: int | None = None, below: str = "") -> list[tuple[int, str, str]]:
        """(source, path, reason) of every image that could not be indexed; of one source, or a part as in `items`."""
        condition, parameters = _within(source, below)
        question = f"SELECT source, path, reason FROM failures {condition} ORDER BY source, path"
        rows = self._connection.execute(question, parameters)
        with self._legible("a failure"):
            return [(row[0], os.fsdecode(row[1]), row[2]) for row in rows]

    def failure_count(self) -> int:
        return int(self._connection.execute("SELECT count(*) FROM failures").fetchone()[0])

    def label_count(self) -> int:
        """The number of different labels."""
        return int(self._connection.execute("SELECT count(DISTINCT label) FROM items").fetchone()[0])

    def has_items(self, source: int) -> bool:
        """Whether any item belongs to the source."""
        found = self._connection.execute("SELECT 1 FROM items WHERE source = ? LIMIT 1", (source,)).fetchone()
        return found is not None

    def counts(self) -> dict[int, int]:
        """The number of items of each source."""
        return dict(self._connection.execute("SELECT source, count(*) FROM items GROUP BY source").fetchall())

    def blocks(self) -> list[tuple[int, int, int]]:
        """(first row, rows, CRC-32) of what was written at once, by first row."""
        rows = self._connection.execute("SELECT first, rows, crc32 FROM blocks ORDER BY first")
        with self._legible("a checksum"):
            return [(int(first), int(count), int(checksum)) for first, count, checksum in rows]

    def item(self, number: int) -> Item:
        """Raises ItemNotFoundError, and UsageError for what is no whole number."""
        if not isinstance(number, int | np.integer):
            raise UsageError(f"{number!r} is not the id of an item")
        if abs(int(number)) > _LARGEST:
            raise ItemNotFoundError(f"the index has no item {number}")
        found = self._connection.execute(f"SELECT {_COLUMNS} FROM items WHERE id = ?", (int(number),)).fetchone()
        if found is None:
            raise ItemNotFoundError(f"the index has no item {number}")
        return _item(found)

    def items(self, source: int | None = None, below: str = "") -> Iterator[Item]:
        """All items by id, or those of one source; of it, those at the path `below` or in the folder of that name."""
        condition, parameters = _within(source, below)
        for row in self._connection.execute(f"SELECT {_COLUMNS} FROM items {condition} ORDER BY id", parameters):
            yield _item(row)

    def items_at(self, rows: Sequence[int]) -> dict[int, Item]:
        """The items that own the given rows, by row. Raises IndexDamagedError if one has no owner."""
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
        """The ids of the items that own the given rows, by row. Raises IndexDamagedError if one has no owner."""
        found: dict[int, int] = {}
        for start in range(0, len(rows), 500):
            part = rows[start : start + 500].tolist()
            marks = ",".join("?" * len(part))
            found |= self._connection.execute(f"SELECT row, id FROM items WHERE row IN ({marks})", part).fetchall()
        if len(found) < len(rows):
            row = next(row for row in rows.tolist() if row not in found)
            raise IndexDamagedError(f"{self._path}: no item owns row {row} of the features")
        return found

    def row_of(self, digest: bytes) -> int | None:
        """The row of a file's features by its SHA-256, if the index has it."""
        found = self._connection.execute("SELECT row FROM items WHERE digest = ? LIMIT 1", (digest,)).fetchone()
        return None if found is None else int(found[0])

    def rows(self, conditions: Iterable[Condition] = ()) -> NDArray[np.int64]:
        """The rows of the items that meet all conditions, ascending."""
        parts, parameters = [], []
        for condition in conditions:
            expression, values = condition.sql()
            parts.append(expression)
            parameters += values
        where = " WHERE " + " AND ".join(parts) if parts else ""
        try:
            cursor = self._connection.execute(f"SELECT row FROM items{where}", parameters)
            with self._legible("an item's row"):
                found = np.fromiter((row[0] for row in cursor), np.int64)
        except sqlite3.OperationalError as error:
            raise UsageError(f"a filter cannot be used: {error}") from error
        found.sort()
        return found

    def ids(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The id and the row of every item, by id."""
        rows = self._connection.execute("SELECT id, row FROM items ORDER BY id").fetchall()
        with self._legible("an item's row"):
            pairs = np.array(rows, np.int64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    def spread(self, count: int) -> list[int]:
        """Up to `count` ids, ascending: those next to points spread evenly from the first to the last."""
        low, high = self._connection.execute("SELECT min(id), max(id) FROM items").fetchone()
        if low is None:
            return []
        points = np.linspace(low, high, count).round().astype(int).tolist()
        next_one = "SELECT id FROM items WHERE id >= ? ORDER BY id LIMIT 1"
        return sorted({int(self._connection.execute(next_one, (point,)).fetchone()[0]) for point in points})

    def integrity(self) -> list[str]:
        """What SQLite finds wrong with its own file."""
        found = [row[0] for row in self._connection.execute("PRAGMA integrity_check(10)")]
        return [] if found == ["ok"] else found


def _within(source: int | None, below: str) -> tuple[str, tuple[Any, ...]]:
    """What an SQL query says to choose a source, or a part of it, with its parameters."""
    if source is None:
        return "", ()
    if not below:
        return "WHERE source = ?", (source,)
    path = os.fsencode(below)
    return "WHERE source = ? AND (path = ? OR (path >= ? AND path < ?))", (source, path, path + b"/", path + b"0")


def _absorb(connection: sqlite3.Connection, narrow: int, broad: int, prefix: str) -> None:
    """Hands the items of a source inside another one to it."""
    start = os.fsencode(prefix + "/")
    for table in ("items", "failures"):
        connection.execute(
            f"UPDATE OR REPLACE {table} SET source = ?, path = CAST(? || path AS BLOB) WHERE source = ?",
            (broad, start, narrow),
        )
    connection.execute("DELETE FROM sources WHERE id = ?", (narrow,))
    connection.execute("UPDATE state SET value = value + 1 WHERE key = 'generation'")


def _item(values: Sequence[Any]) -> Item:
    number, source, path, label, metadata, *rest = values
    try:
        return Item(number, source, os.fsdecode(path), label, json.loads(metadata) if metadata else {}, *rest)
    except (TypeError, ValueError) as error:
        raise IndexDamagedError(f"items.sqlite: item {number} cannot be read: {error}") from error


def _values(item: Item) -> tuple[Any, ...]:
    metadata = json.dumps(item.metadata) if item.metadata else None
    label = None if item.label is None else text(item.label)
    place = item.source, os.fsencode(item.path), label, metadata
    return (*place, item.digest, item.size, item.stamp, item.width, item.height, item.row)


def _quote(path: Path) -> str:
    from urllib.parse import quote

    return quote(os.fsencode(path.absolute()))
