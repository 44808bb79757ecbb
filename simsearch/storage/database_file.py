"""The SQLite file of an index, which SQLite can open only by its path."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from simsearch.errors import IndexDamagedError, SimsearchError
from simsearch.storage.folder import Folder, identity_of

_NOT_DAMAGE = {
    getattr(sqlite3, f"SQLITE_{name}") for name in ("CANTOPEN", "PERM", "AUTH", "FULL", "BUSY", "READONLY", "IOERR")
}
"""SQLite errors that are caused by the disk, permissions or another process, not by a damaged file."""

_ATTEMPTS = 50
"""Number of attempts to open a database while the parent of its folder changes."""

_PENDING, _SHARED, _SHARED_BYTES = 0x40000000, 0x40000002, 510
"""The byte ranges that SQLite locks; see https://sqlite.org/src/file/src/os.h."""


class DatabaseFile:
    """The file that was in the folder when this object was created, never another one that has taken its place.

    path: for messages; its name is that of the file in `folder`. create: make an empty file if there is none.
    Raises IndexDamagedError if there is no such file.
    """

    def __init__(self, path: Path, folder: Folder | None = None, *, create: bool = False) -> None:
        self.path = path
        try:
            self._folder = folder or Folder.at(path.parent)
            if create and not self._folder.exists(path.name):
                os.close(self._folder.open(path.name, os.O_RDWR | os.O_CREAT))
            self._pinned = self._folder.pin(path.name)
        except FileNotFoundError:
            raise IndexDamagedError(f"{path} is missing") from None
        if not stat.S_ISREG(self._folder.stat(path.name).st_mode):
            raise IndexDamagedError(f"{path} is not a file")
        self.writable = os.access(self._folder.descriptor_path, os.W_OK)

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode of the file."""
        return self._pinned.identity

    def connect(self, mode: str = "rw") -> sqlite3.Connection | None:
        """Connects to the file; returns None if it was deleted. Raises sqlite3.Error.

        SQLite resolves all links in a path before opening it, even `/proc/self/fd/N`, and finds the log by the same
        path. The current path of the folder is therefore determined before opening and checked once all files are open;
        the connection is used only if the folder has not moved in between.

        mode: "ro" for the first connection of a process, which on closing cannot apply the log of another file.
        """
        failure: sqlite3.Error | None = None
        for attempt in range(_ATTEMPTS):
            before = self._current()
            if before is None:
                break
            connection = None
            try:
                connection = self._open(before[0], mode)
                if self._current() != before:  # before any log is opened
                    connection.close()
                    continue
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens the log as well
                connection.execute("PRAGMA synchronous = FULL")
            except sqlite3.Error as error:
                if connection is not None:
                    connection.close()
                if self._current() == before and attempt:
                    raise
                failure = error
                continue
            now = self._current()
            if now == before or (attempt == _ATTEMPTS - 1 and now is not None and now[0] == before[0]):
                return connection
            connection.close()
        if failure is not None and self._current() is not None:
            raise failure
        return None

    def _current(self) -> tuple[Path, object] | None:
        """Returns the file's path and a value that changes if its folder moves; None if it was deleted."""
        folder = self._folder.current_path()
        if folder is None or identity_of(folder / self.path.name) != self.identity:
            return None
        return folder / self.path.name, self._folder.moves(folder)

    def _open(self, path: Path, mode: str) -> sqlite3.Connection:
        # Without write access SQLite cannot create the files that readers share with writers. They are not needed: if
        # they are missing, there is no writer.
        alone = not self.writable and not path.with_name(path.name + "-wal").exists()
        name = "file:" + quote(os.fsencode(path.absolute())) + ("?immutable=1" if alone else f"?mode={mode}")
        return sqlite3.connect(name, uri=True, timeout=60, isolation_level=None, check_same_thread=False)

    @contextlib.contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Translates SQLite's errors. Its message about a damaged schema may not be valid UTF-8."""
        try:
            yield
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
            denied = code & 0xFF != sqlite3.SQLITE_CANTOPEN or not os.access(self.path, os.R_OK)
            if code & 0xFF in _NOT_DAMAGE and denied and code != sqlite3.SQLITE_IOERR_SHORT_READ:
                raise SimsearchError(f"{self.path} cannot be used: {error}") from error
            raise IndexDamagedError(f"{self.path}: {error}") from error

    # -- the write-ahead log

    def empty_log(self, connection: sqlite3.Connection) -> None:
        """Applies the log to the database, unless other processes use it."""
        with contextlib.suppress(OSError, sqlite3.Error):
            if self._folder.stat(self.path.name + "-wal").st_size:
                connection.execute("PRAGMA busy_timeout = 0")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def delete_log(self) -> None:
        """Deletes an empty log in the open folder if no other process has the database open.

        Takes SQLite's exclusive lock, as SQLite itself does before it deletes a log.
        """
        log, index = self.path.name + "-wal", self.path.name + "-shm"
        with contextlib.suppress(OSError):
            if self._folder.stat(log).st_size or self._folder.pin(self.path.name).identity != self.identity:
                return
            with open(self._folder.open(self.path.name, os.O_RDWR), "r+b", buffering=0) as file:
                for start, length in ((_PENDING, 1), (_SHARED, _SHARED_BYTES)):
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
                if not self._folder.stat(log).st_size:
                    self._folder.unlink(log)
                    self._folder.unlink(index)
