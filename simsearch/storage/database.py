"""Stores the items of an index in an SQLite database. A commit of the database is a commit of the index.

The features of new items are written and synced to disk first; then one transaction records the items. If the process
dies at any moment, the index is as it was after the last commit. Readers never wait for a writer, since the database is
in write-ahead-log mode. Each reader sees one snapshot.
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
from typing import Any

from simsearch.errors import SimsearchError, UsageError
from simsearch.storage import checksums, protection
from simsearch.storage.connections import Connections, use_log
from simsearch.storage.database_file import DatabaseFile
from simsearch.storage.feature_files import FeatureFiles
from simsearch.storage.filters import replace_surrogates
from simsearch.storage.folder import Folder
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

_LOCAL = "try again; if it fails again, create the index on a local disk"


@dataclass
class Changes:
    """The changes that one transaction makes. The features of new items must already be in the feature files."""

    inserted: list[Item] = field(default_factory=list)  # their id is 0; the database assigns their ids
    updated: list[Item] = field(default_factory=list)  # each replaces the item that has its id
    deleted: list[int] = field(default_factory=list)  # ids
    failed: list[tuple[int, str, str]] = field(default_factory=list)  # (source number, path, reason)
    cleared: list[tuple[int, str]] = field(default_factory=list)  # (source number, path) of failures to delete
    blocks: list[tuple[int, int, int]] = field(default_factory=list)  # (first row, number of rows, CRC-32)

    def __bool__(self) -> bool:
        return any((self.inserted, self.updated, self.deleted, self.failed, self.cleared, self.blocks))


class Database:
    """The database `items.sqlite` of an index. Thread-safe; a caller that writes must hold the writer lock.

    create: True to create the file and its tables if they are missing.
    shards: the feature files. `compact` replaces them by files without the rows of removed items. Each reader gets the
    files that belong to its snapshot.
    folder: the open folder of the index; by default, the parent folder of `path` is opened.
    """

    def __init__(
        self, path: Path, *, create: bool = False, shards: FeatureFiles | None = None, folder: Folder | None = None
    ) -> None:
        self.path, self._shards = path, shards
        self._lock = threading.Lock()
        self._file = DatabaseFile(path, folder, create=create)
        self._connections = Connections(self._file, _SCHEMA)
        if create:
            with (
                self._file.translate_errors(),
                contextlib.closing(self._connections.connect(check=False)) as connection,
            ):
                if not use_log(connection):
                    raise SimsearchError(f"SQLite cannot use a write-ahead log for {path}", hint=_LOCAL)
                connection.executescript(_SCHEMA)
                protection.check_schema(connection, path, _SCHEMA)

    @property
    def identity(self) -> tuple[int, int]:
        """The device and inode number of the file."""
        return self._file.identity

    def keep_readable(self) -> None:
        """Keeps the database readable from now on, even if its file is deleted."""
        self._connections.keep_readable()

    def close(self) -> None:
        """Closes all connections. The database cannot be used afterwards."""
        self._connections.close()

    # -- reading

    @contextlib.contextmanager
    def reading(self) -> Iterator[Reader]:
        """Yields a `Reader` on one snapshot of the database and of the feature files."""
        while True:
            with self._connections.borrow() as connection:
                connection.execute("BEGIN")
                reader = Reader(connection, self.path)
                if self._attach(reader):
                    yield reader
                    return

    def generation(self) -> int:
        """Returns the generation of the index, a number that grows with every commit.

        Reads it only if something was committed since the last call, and so takes less time than `reading`.
        """
        with self._connections.borrow() as connection:
            version = int(connection.execute("PRAGMA data_version").fetchone()[0])
            if connection.seen is None or connection.seen[0] != version:
                connection.seen = version, Reader(connection, self.path).state("generation")
            return connection.seen[1]

    def _attach(self, reader: Reader) -> bool:
        """Gives a reader its feature files; returns False if a compaction deleted the files before they were opened."""
        if self._shards is None:
            return True
        compactions, rows = reader.compactions(), reader.state("rows")
        with self._lock:
            if self._shards.compactions != compactions:
                self._shards = self._shards.after(compactions)
            reader.shards = self._shards
            if reader.shards.keep_open(rows):
                return True
        with self._connections.borrow() as connection:  # True if no compaction came between: the files are damaged
            return Reader(connection, self.path).compactions() == compactions

    def find_content(self, digest: bytes) -> tuple[int, int, int] | None:
        """Returns (row of the features, width, height) of an item whose image file has this SHA-256.

        Returns None if there is no such item.
        """
        with self._connections.borrow() as connection:
            return Reader(connection, self.path).find_content(digest)

    # -- writing

    def apply(self, changes: Changes) -> None:
        """Commits `changes` in one durable transaction."""
        changed = [item.id for item in changes.updated]
        failures = {(source, os.fsencode(path)) for source, path, _ in changes.failed}
        failures |= {(source, os.fsencode(path)) for source, path in changes.cleared}
        with self._connections.transaction() as connection, checksums.kept(connection) as sums:
            sums.before({*changes.deleted, *changed}, failures)
            last = connection.execute("SELECT max(id) FROM items").fetchone()[0] or 0
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
            sums.inserted_after(last)
            connection.executemany(
                "INSERT OR REPLACE INTO failures VALUES (?,?,?)",
                [(source, os.fsencode(path), replace_surrogates(reason)) for source, path, reason in changes.failed],
            )
            connection.executemany(
                "DELETE FROM failures WHERE source=? AND path=?",
                [(source, os.fsencode(path)) for source, path in changes.cleared],
            )
            sums.after(set(changed), failures)
            connection.executemany("INSERT INTO blocks VALUES (?,?,?)", changes.blocks)
            rows = sum(block[1] for block in changes.blocks)
            connection.execute("UPDATE state SET value = value + ? WHERE key = 'rows'", (rows,))
            connection.execute("UPDATE state SET value = value + 1 WHERE key = 'generation'")

    def renumber(
        self, rows: Iterable[tuple[int, int]], blocks: Sequence[tuple[int, int, int]], total: int, compactions: int
    ) -> None:
        """Commits a compaction, which moves items to new rows of the feature files.

        rows: (new row, id) of each item whose row changes, in ascending order of rows.
        blocks: (first row, number of rows, CRC-32) of each block, a range of rows that was written at once.
        total: number of rows in the new feature files. compactions: number of compactions so far, including this one.
        """
        with self._connections.transaction() as connection, checksums.kept(connection) as sums:
            sums.recount()
            connection.executemany("UPDATE items SET row = ? WHERE id = ?", rows)
            connection.execute("DELETE FROM blocks")
            connection.executemany("INSERT INTO blocks VALUES (?,?,?)", blocks)
            connection.execute("UPDATE state SET value = ? WHERE key = 'rows'", (total,))
            connection.execute("INSERT OR REPLACE INTO state VALUES ('epoch', ?)", (compactions,))
            connection.execute("UPDATE state SET value = value + 1 WHERE key = 'generation'")

    def add_source(
        self, kind: str, root: str, index: Path, options: dict[str, Any], absorbed: Sequence[tuple[int, str]] = ()
    ) -> SourceRow:
        """Records a source of images, or updates the options of a source that is recorded already; returns the record.

        kind, root: the kind of the source and its path or address.
        index: the absolute path of the index. If `root` is a path, it is also recorded relative to the index.
        options: the settings of builds for this source.
        absorbed: (number, path relative to `root`) of each recorded source that lies inside this source. The items of
        these sources become items of this source.
        """
        relative = os.path.relpath(root, index) if os.path.isabs(root) else root
        with self._connections.transaction() as connection, checksums.kept(connection) as sums:
            connection.execute(
                "INSERT INTO sources (kind, root, relative, options) VALUES (?,?,?,?)"
                " ON CONFLICT (kind, root) DO UPDATE SET options = excluded.options, relative = excluded.relative",
                (kind, os.fsencode(root), os.fsencode(relative), json.dumps(options)),
            )
            found = connection.execute(
                "SELECT id FROM sources WHERE kind=? AND root=?", (kind, os.fsencode(root))
            ).fetchone()
            for narrow, prefix in absorbed:
                sums.recount()
                _absorb(connection, narrow, found[0], prefix)
        return SourceRow(found[0], kind, root, relative, options)

    def relocate(self, source: int, root: str, index: Path) -> None:
        """Changes the root (the path or address) of a source. Raises UsageError if another source has this root.

        source: the number of the source.
        index: the absolute path of the index. If `root` is a path, it is also recorded relative to the index.
        """
        relative = os.path.relpath(root, index) if os.path.isabs(root) else root
        with self._connections.transaction() as connection, checksums.kept(connection):
            connection.execute("UPDATE state SET value = value + 1 WHERE key = 'generation'")
            try:
                connection.execute(
                    "UPDATE sources SET root=?, relative=? WHERE id=?",
                    (os.fsencode(root), os.fsencode(relative), source),
                )
            except sqlite3.IntegrityError:
                raise UsageError(f"{root} is already another source of this index") from None

    def forget(self, number: int) -> None:
        """Deletes the record of the source `number`, which has no items, together with its recorded failures."""
        with self._connections.transaction() as connection, checksums.kept(connection) as sums:
            sums.recount()
            connection.execute("DELETE FROM failures WHERE source = ?", (number,))
            connection.execute(
                "DELETE FROM sources WHERE id = ? AND NOT EXISTS (SELECT 1 FROM items WHERE source = ?)",
                (number, number),
            )


def _absorb(connection: sqlite3.Connection, narrow: int, broad: int, prefix: str) -> None:
    """Merges a source of images into another source that contains it, for example a folder into its parent folder.

    All items and failures of `narrow` become items and failures of `broad`, and the record of `narrow` is deleted.
    narrow, broad: the numbers of the inner and the outer source.
    prefix: the path of the inner source, relative to the outer source.
    """
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
