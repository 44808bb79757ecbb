"""The items of an index in an SQLite database; a commit of the database is a commit of the index.

Rows of features are written and synced first, then one transaction records their items, so a process that dies at any
moment leaves a committed state. Readers never wait: the database is in write-ahead-log mode, and each operation sees
one snapshot.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sqlite3
import tempfile
import threading
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simsearch.errors import IndexDamagedError, IndexReplacedError, SimsearchError, UsageError
from simsearch.storage import protection
from simsearch.storage.feature_files import FeatureFiles
from simsearch.storage.filters import replace_surrogates
from simsearch.storage.folder import Folder, NotRegularError, error_for, identity_of
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
_NOT_DAMAGE = {
    getattr(sqlite3, f"SQLITE_{name}") for name in ("CANTOPEN", "PERM", "AUTH", "FULL", "BUSY", "READONLY", "IOERR")
}
"""SQLite errors that are caused by the disk, permissions or another process, not by a damaged file."""

_NO_SPACE = {getattr(sqlite3, f"SQLITE_{name}") for name in ("CANTOPEN", "FULL", "READONLY", "IOERR", "PERM")}
"""SQLite errors of a disk on which the files that readers share cannot be made."""

_NEIGHBOURS: dict[str, set[bytes]] = {
    "-wal": {b"", b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83"},
    "-shm": {b"", bytes(4), (3_007_000).to_bytes(4, "little"), (3_007_000).to_bytes(4, "big")},
    "-journal": set(),
}
"""How the files beside a database begin; see https://sqlite.org/fileformat2.html and walformat.html."""

_ATTEMPTS = 50
"""Number of attempts to open a database while the parent of its folder changes."""

_PENDING, _SHARED, _SHARED_BYTES = 0x40000000, 0x40000002, 510
"""The byte ranges that SQLite locks; see https://sqlite.org/src/file/src/os.h."""

_opening = threading.RLock()
_open_counts: Counter[tuple[int, int]] = Counter()
"""The number of `Database` objects in this process with connections to each file, by device and inode."""


def _after_fork() -> None:
    global _opening
    _opening = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)


@dataclass
class Changes:
    """The changes of one transaction. The rows of new items must already be in the feature files."""

    inserted: list[Item] = field(default_factory=list)  # id 0: assigned here
    updated: list[Item] = field(default_factory=list)  # replaced as a whole, by id
    deleted: list[int] = field(default_factory=list)
    failed: list[tuple[int, str, str]] = field(default_factory=list)  # source, path, reason
    cleared: list[tuple[int, str]] = field(default_factory=list)  # former failures
    blocks: list[tuple[int, int, int]] = field(default_factory=list)  # first row, rows, CRC-32

    def __bool__(self) -> bool:
        return any((self.inserted, self.updated, self.deleted, self.failed, self.cleared, self.blocks))


class Database:
    """The database `items.sqlite`. Thread-safe; writing needs the writer lock.

    SQLite opens files by path. A connection is therefore used only if, before and after opening, the file at that path
    is the one that was there when this object was created; see `_connect`.

    folder: the open folder of the index; that of `path` by default.
    shards: the feature files, of any epoch; each reader gets those of its epoch.
    """

    def __init__(
        self, path: Path, *, create: bool = False, shards: FeatureFiles | None = None, folder: Folder | None = None
    ) -> None:
        self.path, self._shards = path, shards
        self._idle: list[protection.Connection] = []
        self._lock = threading.Lock()
        self._closed = False
        self._copy: tuple[weakref.finalize[..., Any], Path] | None = None
        self._creating = create
        try:
            self._folder = folder or Folder.at(path.parent)
            if create and self._folder.exists(path.name + "-journal"):  # left by a killed creation: nothing is in it
                self._folder.unlink(path.name)
                self._folder.unlink(path.name + "-journal")
            if create and not self._folder.exists(path.name):
                os.close(self._folder.open(path.name, os.O_RDWR | os.O_CREAT))
            self._file = self._folder.pin(path.name)
        except FileNotFoundError:
            raise IndexDamagedError(f"{path} is missing") from None
        except OSError as error:
            raise error_for(path, error) from error
        self._writable = os.access(self._folder.through, os.W_OK)
        self._reserve: sqlite3.Connection | None = None
        if create:
            with self._translate_errors(), contextlib.closing(self._connect()) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(_SCHEMA)
                protection.check_schema(connection, path, _SCHEMA)
            self._creating = False

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode of the file."""
        return self._file.identity

    # -- connections

    @contextlib.contextmanager
    def _connection(self) -> Iterator[protection.Connection]:
        with self._lock:
            if self._closed:
                raise UsageError(f"the index {self.path.parent} has been closed")
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            self.hold()
            connection = self._connect()
        try:
            yield connection
        finally:
            if connection.in_transaction:
                connection.rollback()
            with self._lock:
                reusable = self._writable and not self._closed and not connection.alone
                if reusable:
                    self._idle.append(connection)
            if not reusable:
                connection.close()

    def hold(self) -> None:
        """Opens a reserve connection, so that everything stays readable after the file has been deleted.

        It is read-only: on closing the last writable connection, SQLite deletes the log by path, where the log of
        another index may be by then. `close` deletes the log instead.
        """
        with self._translate_errors(), _opening:
            if self._reserve is None:
                self._reserve = self._connect("ro")
                _open_counts[self._file.identity] += 1

    def _connect(self, mode: str = "rw") -> protection.Connection:
        """Connects to the file that was there when this object was created, or to a copy of it if it was deleted.

        SQLite resolves all links in a path before opening it, even `/proc/self/fd/N`, and finds the log by the same
        path. The current path of the folder is therefore determined before opening and checked once all files are open;
        the connection is used only if the folder has not moved in between. Connections are opened one at a time, since
        the connections of a process share SQLite's state of a log.

        mode: "ro" for the first connection of a process, which on closing cannot apply the log of another file.
        """
        failure: sqlite3.Error | None = None
        connection: protection.Connection | None
        with _opening:
            for attempt in range(_ATTEMPTS):
                before = self._current_file()
                if before is None:
                    break
                connection = None
                try:
                    connection = self._open(before[0], mode)
                    if self._current_file() != before:  # before any log is opened
                        connection.close()
                        continue
                    connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens the log as well
                    connection.execute("PRAGMA synchronous = FULL")
                except sqlite3.Error as error:
                    if connection is not None:
                        connection.close()
                    if self._current_file() != before or not attempt:
                        failure = error
                        continue
                    if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _NO_SPACE:
                        raise
                    connection = self._connect_without_log(before[0], error)
                now = self._current_file()
                if now == before or (attempt == _ATTEMPTS - 1 and now is not None and now[0] == before[0]):
                    self._check_schema(connection)
                    return connection
                connection.close()
        if failure is not None and self._current_file() is not None:
            raise failure
        return self._connect_to_copy()

    def _check_schema(self, connection: protection.Connection) -> None:
        """Closes the connection and raises IndexDamagedError if the database has other tables than an index's."""
        try:
            if not self._creating:
                protection.check_schema(connection, self.path, _SCHEMA)
        except BaseException:
            connection.close()
            raise

    def _current_file(self) -> tuple[Path, object] | None:
        """Returns the file's path and a value that changes if its folder moves; None if it was deleted."""
        folder = self._folder.current_path()
        if folder is None or identity_of(folder / self.path.name) != self._file.identity:
            return None
        return folder / self.path.name, self._folder.moves(folder)

    def _open(self, path: Path, mode: str) -> protection.Connection:
        self._check_neighbours()
        # Without write access SQLite cannot create the files that readers share with writers. They are not needed: if
        # they are missing, there is no writer.
        alone = not self._writable and not path.with_name(path.name + "-wal").exists()
        return self._open_alone(path) if alone else _connect(f"file:{_quote(path)}?mode={mode}", path)

    def _open_alone(self, path: Path) -> protection.Connection:
        """Opens the database without the files that readers share with writers, of which there must be none."""
        connection = _connect(f"file:{_quote(path)}?immutable=1", path)
        connection.alone = True
        return connection

    def _check_neighbours(self) -> None:
        """Raises IndexDamagedError if files beside the database would make SQLite use other files, or wait.

        An index has no rollback journal: it is in write-ahead-log mode. A journal may name a file that SQLite deletes.
        """
        for suffix, beginnings in _NEIGHBOURS.items():
            if suffix == "-shm" and _open_counts[self._file.identity]:
                continue  # it was checked before, and closing it would drop SQLite's locks
            path = self.path.with_name(self.path.name + suffix)
            try:
                with open(self._folder.open(path.name), "rb") as file:
                    beginning = file.read(4)
            except FileNotFoundError:
                continue
            except NotRegularError as error:
                raise error_for(path, error) from error
            except OSError:
                continue  # SQLite tells why
            if beginning not in beginnings:
                raise IndexDamagedError(f"{path} is no part of an index")

    def _connect_without_log(self, path: Path, error: sqlite3.Error) -> protection.Connection:
        """Connects where SQLite cannot make the files that readers share: the disk is full or write-protected.

        With a log that is not empty, a copy of the database and its log is read. Raises `error` if that fails as well.
        """
        try:
            size = self._folder.stat(self.path.name + "-wal").st_size
        except OSError:
            size = 0
        try:
            if not size:
                connection = self._open_alone(path)
            else:
                copy = self._copy_with_log()
                connection = _connect(copy.as_uri(), copy)
                connection.execute("PRAGMA query_only = ON")
                connection.alone = True
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except (sqlite3.Error, OSError):
            raise error from None
        return connection

    def _copy_with_log(self) -> Path:
        """Copies the database and its log to a temporary folder and returns the path of the copy. Raises OSError."""
        with self._lock:
            if self._copy is None:
                folder = Path(tempfile.mkdtemp(prefix="simsearch-"))
                deletion = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
                for name in (self.path.name, self.path.name + "-wal"):
                    with open(self._folder.open(name), "rb") as source, (folder / name).open("wb") as target:
                        shutil.copyfileobj(source, target)
                self._copy = deletion, folder / self.path.name
            return self._copy[1]

    def _connect_to_copy(self) -> protection.Connection:
        """Connects to a copy of the deleted file, made by the reserve connection. Raises IndexReplacedError."""
        with self._lock:
            if self._reserve is None:
                raise IndexReplacedError(
                    f"the index {self.path.parent} was removed or replaced while it was open", hint="open it again"
                )
            if self._copy is None:
                folder = tempfile.mkdtemp(prefix="simsearch-")
                deletion = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
                path = Path(folder, self.path.name)
                with contextlib.closing(sqlite3.connect(path)) as copy:
                    self._reserve.backup(copy)
                self._copy = deletion, path
            path = self._copy[1]
        return _connect(path.as_uri(), path)

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Translates SQLite's errors. Its message about a damaged schema may not be valid UTF-8."""
        try:
            yield
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
            if code & 0xFF in _NOT_DAMAGE and code != sqlite3.SQLITE_IOERR_SHORT_READ:
                raise SimsearchError(f"{self.path} cannot be used: {error}") from error
            stopped = code == sqlite3.SQLITE_INTERRUPT
            reason = "a statement takes far longer than its size explains" if stopped else error
            raise IndexDamagedError(f"{self.path}: {reason}") from error

    @contextlib.contextmanager
    def reading(self) -> Iterator[Reader]:
        """Opens a reader on one snapshot of the database and its feature files."""
        with self._translate_errors():
            while True:
                with self._connection() as connection:
                    connection.execute("BEGIN")
                    reader = Reader(connection, self.path)
                    if self._attach(reader):
                        yield reader
                        return

    def _attach(self, reader: Reader) -> bool:
        """Sets the feature files of a reader; returns False if a compaction deleted them before they were opened."""
        if self._shards is None:
            return True
        epoch, rows = reader.epoch(), reader.state("rows")
        with self._lock:
            if self._shards.epoch != epoch:
                self._shards = self._shards.at(epoch)
            reader.shards = self._shards
            if reader.shards.hold(rows):
                return True
        with self._connection() as connection:  # same epoch in a later snapshot: the files are damaged
            return Reader(connection, self.path).epoch() == epoch

    def close(self) -> None:
        """Closes all idle connections. The database cannot be used afterwards."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            reserve, self._reserve = self._reserve, None
            copy, self._copy = self._copy, None
        with _opening:
            if idle and reserve is not None:
                self._empty_log(idle[0])
            for connection in idle:
                connection.close()
            if reserve is not None:
                reserve.close()
                _open_counts[self._file.identity] -= 1
                if self._writable and not _open_counts[self._file.identity]:
                    del _open_counts[self._file.identity]
                    self._delete_log()
        if copy is not None:
            copy[0]()

    def _empty_log(self, connection: sqlite3.Connection) -> None:
        """Applies the log to the database, unless other processes use it."""
        with contextlib.suppress(OSError, sqlite3.Error):
            if self._folder.stat(self.path.name + "-wal").st_size:
                connection.execute("PRAGMA busy_timeout = 0")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _delete_log(self) -> None:
        """Deletes an empty log in the open folder if no other process has the database open.

        Takes SQLite's exclusive lock, as SQLite itself does before it deletes a log.
        """
        log, index = self.path.name + "-wal", self.path.name + "-shm"
        with contextlib.suppress(OSError):
            if self._folder.stat(log).st_size or self._folder.pin(self.path.name).identity != self._file.identity:
                return
            with open(self._folder.open(self.path.name, os.O_RDWR), "r+b", buffering=0) as file:
                for start, length in ((_PENDING, 1), (_SHARED, _SHARED_BYTES)):
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
                if not self._folder.stat(log).st_size:
                    self._folder.unlink(log)
                    self._folder.unlink(index)

    def content(self, digest: bytes) -> tuple[int, int, int] | None:
        """Returns (row, width, height) of an image by the SHA-256 of its file; None if it is not in the index."""
        with self._translate_errors(), self._connection() as connection:
            return Reader(connection, self.path).content(digest)

    # -- writing

    def apply(self, changes: Changes) -> None:
        """Commits `changes` in one durable transaction."""
        with self._translate_errors(), self._connection() as connection:
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
        """Commits a compaction: the feature files of `epoch`, with `total` rows.

        rows: (new row, id) of each item that moves, by ascending row. blocks: all blocks, as in `Changes`.
        """
        with self._translate_errors(), self._connection() as connection:
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
        """Records a source and its options, or updates those of a recorded one; returns it.

        absorbed: (source, path relative to `root`) of narrower sources whose items are moved to this one.
        """
        relative = os.path.relpath(root, index) if os.path.isabs(root) else root
        with self._translate_errors(), self._connection() as connection:
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
        """Changes the root of a source. Raises UsageError if another source has it."""
        with self._translate_errors(), self._connection() as connection:
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
        with self._translate_errors(), self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DELETE FROM failures WHERE source = ?", (number,))
            connection.execute(
                "DELETE FROM sources WHERE id = ? AND NOT EXISTS (SELECT 1 FROM items WHERE source = ?)",
                (number, number),
            )
            connection.execute("COMMIT")


def _absorb(connection: sqlite3.Connection, narrow: int, broad: int, prefix: str) -> None:
    """Moves the items of a source to another one that contains it."""
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


def _connect(uri: str, path: Path) -> protection.Connection:
    return protection.connect(uri, path, uri=True, timeout=60, isolation_level=None, check_same_thread=False)


def _quote(path: Path) -> str:
    from urllib.parse import quote

    return quote(os.fsencode(path.absolute()))
