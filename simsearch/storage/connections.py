"""Opens SQLite connections to the database of an index when they are needed, and reuses them."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simsearch.common import fork
from simsearch.errors import IndexReplacedError, UsageError
from simsearch.storage import protection
from simsearch.storage.database_file import DatabaseFile

_opening = threading.RLock()
"""A lock for opening and closing connections: all connections of a process share SQLite's state of a log."""

_open_counts: Counter[tuple[int, int]] = Counter()
"""For each file (device, inode number), the number of `Connections` objects of this process that have it open."""


def _after_fork() -> None:
    global _opening
    _opening = threading.RLock()
    _open_counts.clear()


fork.in_child(_after_fork)


def use_log(connection: sqlite3.Connection) -> bool:
    """Switches a database to a write-ahead log, and returns True if it has one now.

    If a file cannot be written at this moment, SQLite may go on without a log and raise no error.
    """
    found: tuple[str] = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    return found == ("wal",)


class Connections:
    """The connections of this process to one database file. Thread-safe.

    schema: the SQL that creates the tables; a database with other tables is rejected.
    """

    def __init__(self, file: DatabaseFile, schema: str) -> None:
        self._file, self._schema = file, schema
        self._idle: list[protection.Connection] = []
        self._reserve: sqlite3.Connection | None = None
        self._copy: tuple[weakref.finalize[..., Any], Path] | None = None
        self._closed = False
        self._lock = threading.Lock()
        fork.in_child(self._leave)

    def _leave(self) -> None:
        """Forgets all connections in a forked child process, where SQLite forbids using them; `borrow` opens new ones.

        A child does not inherit the parent's locks on files. So after `keep_readable`, the child locks the database
        file itself. It uses `DatabaseFile.lock_shared` and not SQLite, because SQLite's variables were copied from the
        parent and say that the file is locked already.
        """
        fork.never_close((self._idle, self._reserve))
        if self._copy is not None:
            self._copy[0].detach()  # the parent deletes the copy
        if self._reserve is not None:
            self._file.lock_shared()
        self._idle, self._reserve, self._lock = [], None, threading.Lock()

    @contextlib.contextmanager
    def borrow(self) -> Iterator[protection.Connection]:
        """Yields a connection for a `with` block; afterwards rolls back a transaction that is still open.

        Raises UsageError after `close`, and converts SQLite's errors as `DatabaseFile.translate_errors` does.
        """
        with fork.postponed(), self._file.translate_errors():
            with self._lock:
                if self._closed:
                    raise UsageError(f"the index {self._file.path.parent} has been closed")
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                self.keep_readable()
                connection = self.connect()
            try:
                yield connection
            finally:
                if connection.in_transaction:
                    connection.rollback()
                with self._lock:
                    # without write access, an old connection would not see later commits
                    reusable = self._file.writable and not self._closed and not connection.alone
                    if reusable:
                        self._idle.append(connection)
                if not reusable:
                    connection.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[protection.Connection]:
        """Yields a connection for one durable transaction: commits at the end, or rolls back on an exception.

        First tries to give the database a write-ahead log if it has none. Older versions could create a database
        without a log, if a system call failed. If a process is killed while it writes to such a database, it leaves a
        journal file, and then the database cannot be opened.
        """
        with self.borrow() as connection:
            if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
                with contextlib.suppress(sqlite3.OperationalError):  # other processes are reading
                    use_log(connection)
            connection.seen = None
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")

    def keep_readable(self) -> None:
        """Opens a reserve connection, so that the data stays readable after the database file has been deleted.

        The reserve connection is read-only and is closed last. If the last connection were writable, SQLite would
        delete the file at the path of the write-ahead log, and by then this file may belong to another index. `close`
        deletes the log of this index instead.
        """
        with fork.postponed(), self._file.translate_errors(), _opening:
            if self._reserve is None:
                self._reserve = self.connect("ro")
                _open_counts[self._file.identity] += 1

    def connect(self, mode: str = "rw", check: bool = True) -> protection.Connection:
        """Opens a new connection, which the caller closes.

        If the database file was deleted after `keep_readable` was called, connects to a copy of its content. If it was
        deleted before that call, raises IndexReplacedError.
        mode: "rw", or "ro" for read-only. check: False for a database that has no tables yet.
        Raises IndexDamagedError if the database is damaged or has other tables than `schema`.
        """
        with fork.postponed(), _opening:
            connection = self._file.connect(mode, first=not _open_counts[self._file.identity])
        if connection is None:
            return self._connect_to_copy()
        try:
            if check:
                protection.check_schema(connection, self._file.path, self._schema)
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect_to_copy(self) -> protection.Connection:
        """Connects to a temporary copy of the deleted database; the first call makes the copy.

        The copy is made with the reserve connection (see `keep_readable`), which can still read the deleted file.
        Raises IndexReplacedError if there is no reserve connection.
        """
        with self._lock:
            if self._reserve is None:
                place = self._file.path.parent
                raise IndexReplacedError(
                    f"the index {place} was removed or replaced while it was open", hint="open the index again"
                )
            if self._copy is None:
                folder = tempfile.mkdtemp(prefix="simsearch-")
                deletion = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
                path = Path(folder, self._file.path.name)
                with contextlib.closing(sqlite3.connect(path)) as copy:
                    self._reserve.backup(copy)
                self._copy = deletion, path
            path = self._copy[1]
        return protection.connect(path.as_uri(), path)

    def close(self) -> None:
        """Closes all connections that are not borrowed; `borrow` raises UsageError from then on.

        A borrowed connection is closed when its block ends.
        """
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            reserve, self._reserve = self._reserve, None
            copy, self._copy = self._copy, None
        identity = self._file.identity
        with fork.postponed(), _opening:
            if idle and reserve is not None:
                self._file.empty_log(idle[0])
            for connection in idle:
                connection.close()
            if reserve is not None:
                reserve.close()
                _open_counts[identity] -= 1
                if self._file.writable and not _open_counts[identity]:
                    del _open_counts[identity]
                    self._file.delete_log()
        if copy is not None:
            copy[0]()
