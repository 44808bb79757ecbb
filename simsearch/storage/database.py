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
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simsearch.errors import IndexDamagedError, IndexReplacedError, SimsearchError, UsageError
from simsearch.storage.feature_files import FeatureFiles
from simsearch.storage.filters import replace_surrogates
from simsearch.storage.folder import Folder, identity_of
from simsearch.storage.reader import Item, Reader, SourceRow

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
_ELSEWHERE = {
    getattr(sqlite3, f"SQLITE_{name}") for name in ("CANTOPEN", "PERM", "AUTH", "FULL", "BUSY", "READONLY", "IOERR")
}
"""What SQLite says when not the file is at fault but the disk, its being full, or another process."""


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


class Database:
    """The database `items.sqlite`. Use from any number of threads; writing is for the holder of the writer lock.

    SQLite opens files by path. Each connection therefore counts only if the file at that path is, before and after,
    the one that was there when this object was made; see `_connect`.

    folder: the index's, held open; that of `path` unless given. shards: the feature files, of any epoch; each reader
    is given those of its own.
    """

    def __init__(
        self, path: Path, *, create: bool = False, shards: FeatureFiles | None = None, folder: Folder | None = None
    ) -> None:
        self.path, self._shards = path, shards
        self._idle: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._closed = False
        self._copy: tuple[tempfile.TemporaryDirectory[str], Path] | None = None
        try:
            self._folder = folder or Folder.at(path.parent)
            if create and not self._folder.exists(path.name):
                os.close(self._folder.open(path.name, os.O_RDWR | os.O_CREAT))
            self._file = self._folder.pin(path.name)
        except FileNotFoundError:
            raise IndexDamagedError(f"{path} is missing") from None
        self._writable = os.access(self._folder.through, os.W_OK)
        self._reserve: sqlite3.Connection | None = None
        if create:
            with self._mapped(), self._connection() as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(_SCHEMA)

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode of the file."""
        return self._file.identity

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

    def hold(self) -> None:
        """Keeps a connection in reserve, so that all can be read also when the file has been deleted."""
        with self._mapped():
            self._reserve = self._connect()

    def _connect(self) -> sqlite3.Connection:
        """A connection to the file that was there when this object was made, or to a copy of it if that is gone.

        SQLite resolves every link in a path before it opens it, `/proc/self/fd/N` as well, and finds the log by the
        same path. So where the folder is now is looked up, and looked at again once all files are open.
        """
        place = self._place()
        while place is not None:
            connection = self._open(place)
            try:
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens the log as well
            except BaseException:
                connection.close()
                raise
            now = self._place()
            if now == place:
                connection.execute("PRAGMA synchronous = FULL")
                return connection
            connection.close()
            place = now
        return self._connect_to_copy()

    def _place(self) -> Path | None:
        """Where the file is now, or None."""
        folder = self._folder.current_path()
        if folder is None or identity_of(folder / self.path.name) != self._file.identity:
            return None
        return folder / self.path.name

    def _open(self, path: Path) -> sqlite3.Connection:
        # Without write access SQLite cannot make the files that readers share with writers, and need not: where they
        # are missing, nobody is writing.
        alone = not self._writable and not path.with_name(path.name + "-wal").exists()
        name = "file:" + _quote(path) + ("?immutable=1" if alone else "?mode=rw")
        return sqlite3.connect(name, uri=True, timeout=60, isolation_level=None, check_same_thread=False)

    def _connect_to_copy(self) -> sqlite3.Connection:
        """A connection to a copy of the deleted file, which the connection in reserve still reads."""
        with self._lock:
            if self._reserve is None:
                raise IndexReplacedError(
                    f"the index {self.path.parent} was removed or replaced while it was open", hint="open it again"
                )
            if self._copy is None:
                folder = tempfile.TemporaryDirectory(prefix="simsearch-", ignore_cleanup_errors=True)
                path = Path(folder.name, self.path.name)
                with contextlib.closing(sqlite3.connect(path)) as copy:
                    self._reserve.backup(copy)
                self._copy = folder, path
            path = self._copy[1]
        return sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)

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
            if self._reserve is not None:
                idle.append(self._reserve)
            self._reserve = None
            copy, self._copy = self._copy, None
        for connection in idle:
            connection.close()
        if copy is not None:
            copy[0].cleanup()

    def content(self, digest: bytes) -> tuple[int, int, int] | None:
        """For a file's SHA-256, the row of its features and the image's width and height, as last committed."""
        with self._mapped(), self._connection() as connection:
            return Reader(connection, self.path).content(digest)

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
                [(source, os.fsencode(path), replace_surrogates(reason)) for source, path, reason in changes.failed],
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


def _values(item: Item) -> tuple[Any, ...]:
    metadata = json.dumps(item.metadata) if item.metadata else None
    label = None if item.label is None else replace_surrogates(item.label)
    place = item.source, os.fsencode(item.path), label, metadata
    return (*place, item.digest, item.size, item.stamp, item.width, item.height, item.row)


def _quote(path: Path) -> str:
    from urllib.parse import quote

    return quote(os.fsencode(path.absolute()))
