"""Opens the SQLite file of an index by its path, but never another file that was put at the same path."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from simsearch.errors import IndexDamagedError, SimsearchError
from simsearch.storage import protection
from simsearch.storage.folder import Folder, NotRegularError, error_for, identity_of

_NOT_DAMAGE = {
    getattr(sqlite3, f"SQLITE_{name}") for name in ("CANTOPEN", "PERM", "AUTH", "FULL", "BUSY", "READONLY", "IOERR")
}
"""SQLite errors that are caused by the disk, permissions or another process, not by a damaged file."""

_NO_SPACE = {getattr(sqlite3, f"SQLITE_{name}") for name in ("CANTOPEN", "FULL", "READONLY", "IOERR", "PERM")}
"""SQLite's errors if it cannot create the -wal and -shm files because the disk is full or write-protected."""

_NEIGHBOURS: dict[str, set[bytes]] = {
    "-wal": {b"", b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83"},
    "-shm": {b"", bytes(4), (3_007_000).to_bytes(4, "little"), (3_007_000).to_bytes(4, "big")},
    "-journal": set(),
}
"""For each suffix of SQLite's files beside a database, the permitted first 4 bytes; a -journal file is not permitted.

See https://sqlite.org/fileformat2.html and https://sqlite.org/walformat.html.
"""

_ATTEMPTS = 50
"""Maximum number of attempts to open a database while its folder, or a file beside the folder, is renamed."""

_PENDING, _SHARED, _SHARED_BYTES = 0x40000000, 0x40000002, 510
"""The bytes of a database that SQLite locks: the byte at _PENDING, and _SHARED_BYTES bytes from _SHARED on.

See https://sqlite.org/src/file/src/os.h.
"""


class DatabaseFile:
    """One particular database file: a file that later takes its place in the folder is never opened.

    path: the file's path. Its last part names the file in `folder`; the whole path appears in messages.
    folder: the open folder of the file; by default, the parent folder of `path` is opened.
    create: True to create an empty file if it is missing; otherwise a missing file raises IndexDamagedError.
    """

    def __init__(self, path: Path, folder: Folder | None = None, *, create: bool = False) -> None:
        self.path = path
        try:
            self._folder = folder or Folder.at(path.parent)
            if create and self._folder.exists(path.name + "-journal"):  # left by an interrupted creation: no data
                self._folder.unlink(path.name)
                self._folder.unlink(path.name + "-journal")
            if create and not self._folder.exists(path.name):
                os.close(self._folder.open(path.name, os.O_RDWR | os.O_CREAT))
            self._pinned = self._folder.pin(path.name)
        except FileNotFoundError:
            raise IndexDamagedError(f"{path} is missing") from None
        except OSError as error:
            raise error_for(path, error) from error
        self._log_copy: tuple[weakref.finalize[..., Any], Path] | None = None
        self.writable = os.access(self._folder.descriptor_path, os.W_OK)

    @property
    def identity(self) -> tuple[int, int]:
        """The device and inode number of the file."""
        return self._pinned.identity

    def connect(self, mode: str = "rw", first: bool = False) -> protection.Connection | None:
        """Connects to the file; returns None if the file was deleted. Raises sqlite3.Error and IndexDamagedError.

        SQLite opens the database by its path, and then the write-ahead log beside it. If the folder is renamed in
        between, SQLite may open the log of another database. The folder's current path is therefore determined before
        SQLite opens the files, and again afterwards. If it has changed, the connection is closed, and another attempt
        is made. The path `/proc/self/fd/N` would not help, because SQLite resolves all links in a path first.

        mode: "rw" to read and write, or "ro" to read only. If the last connection to a database is "rw", closing
        it makes SQLite apply the log at the database's path. If the folder was renamed or replaced before, this may be
        the log of another database. A connection with "ro" never does this.
        first: True if this process has no other connection to the file. Only then is its -shm file checked.
        """
        failure: sqlite3.Error | None = None
        connection: protection.Connection | None
        for attempt in range(_ATTEMPTS):
            before = self._current()
            if before is None:
                break
            connection = None
            try:
                self._check_neighbours(first)
                connection = self._open(before[0], mode)
                if self._current() != before:  # before any log is opened
                    connection.close()
                    continue
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens the log as well
                connection.execute("PRAGMA synchronous = FULL")
            except sqlite3.Error as error:
                if connection is not None:
                    connection.close()
                if self._current() != before or not attempt:
                    failure = error
                    continue
                if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _NO_SPACE:
                    raise
                connection = self._connect_without_log(before[0], error)
            now = self._current()
            if now == before or (attempt == _ATTEMPTS - 1 and now is not None and now[0] == before[0]):
                return connection
            connection.close()
        if failure is not None and self._current() is not None:
            raise failure
        return None

    def _current(self) -> tuple[Path, object] | None:
        """Returns the file's current path and a value that changes if its folder moves; None if the file is gone."""
        folder = self._folder.current_path()
        if folder is None or identity_of(folder / self.path.name) != self.identity:
            return None
        return folder / self.path.name, self._folder.moves(folder)

    def _open(self, path: Path, mode: str) -> protection.Connection:
        # Without write access, SQLite cannot create the -wal and -shm files, which readers share with writers. If they
        # are missing, there is no writer, and they are not needed.
        alone = not self.writable and not path.with_name(path.name + "-wal").exists()
        return self._open_alone(path) if alone else protection.connect(f"{_uri(path)}?mode={mode}", path)

    def _open_alone(self, path: Path) -> protection.Connection:
        """Connects to the database as an immutable file, without -wal and -shm files; the log must be empty."""
        connection = protection.connect(f"{_uri(path)}?immutable=1", path)
        connection.alone = True
        return connection

    def _check_neighbours(self, first: bool) -> None:
        """Raises IndexDamagedError if a -wal, -shm or -journal file beside the database cannot be SQLite's own.

        Such a file could make SQLite wait forever, or use files elsewhere. A -journal file is never permitted: an index
        is in write-ahead-log mode and needs none, and a journal may name a file that SQLite then deletes.
        first: True if this process has no other connection to the database. Otherwise, the -shm file was checked
        before and is not opened again, because closing it would release SQLite's locks.
        """
        for suffix, beginnings in _NEIGHBOURS.items():
            if suffix == "-shm" and not first:
                continue  # checked before; closing it here would drop SQLite's locks
            path = self.path.with_name(self.path.name + suffix)
            try:
                with open(self._folder.open(path.name), "rb") as file:
                    beginning = file.read(4)
            except FileNotFoundError:
                continue
            except NotRegularError as error:
                raise error_for(path, error) from error
            except OSError:
                continue  # SQLite will report the reason
            if not any(beginning == each or _cut_short(beginning, each) for each in beginnings):
                raise IndexDamagedError(f"{path} is not part of an index")

    def _connect_without_log(self, path: Path, error: sqlite3.Error) -> protection.Connection:
        """Connects read-only if SQLite cannot create -wal and -shm files on a full or write-protected disk.

        If the -wal file, which is the log, is missing or empty, the connection reads the database file alone.
        Otherwise it reads a temporary copy of the database and its log.
        path: the current path of the database.
        error: the error of `connect`'s own attempt. It is raised if this function cannot connect either.
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
                connection = protection.connect(_uri(copy), copy)
                connection.execute("PRAGMA query_only = ON")
                connection.alone = True
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except (sqlite3.Error, OSError):
            raise error from None
        return connection

    def _copy_with_log(self) -> Path:
        """Returns the path of a temporary copy of the database and its log, made at the first call. Raises OSError."""
        if self._log_copy is None:
            folder = Path(tempfile.mkdtemp(prefix="simsearch-"))
            deletion = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            for name in (self.path.name, self.path.name + "-wal"):
                with open(self._folder.open(name), "rb") as source, (folder / name).open("wb") as target:
                    shutil.copyfileobj(source, target)
            self._log_copy = deletion, folder / self.path.name
        return self._log_copy[1]

    @contextlib.contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Converts SQLite's errors in the block: IndexDamagedError if the file is damaged, else SimsearchError.

        A UnicodeDecodeError counts as damage: SQLite's message about a damaged schema may not be valid UTF-8.
        """
        try:
            yield
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
            if code & 0xFF in _NOT_DAMAGE and code != sqlite3.SQLITE_IOERR_SHORT_READ:
                raise SimsearchError(f"{self.path} cannot be used: {error}") from error
            stopped = code == sqlite3.SQLITE_INTERRUPT
            reason = "a statement takes far longer than the size of the file explains" if stopped else error
            raise IndexDamagedError(f"{self.path}: {reason}") from error

    # -- the write-ahead log

    def empty_log(self, connection: sqlite3.Connection) -> None:
        """Applies the write-ahead log to the database and empties the log, unless another process is using it."""
        with contextlib.suppress(OSError, sqlite3.Error):
            if self._folder.stat(self.path.name + "-wal").st_size:
                connection.execute("PRAGMA busy_timeout = 0")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def lock_shared(self) -> None:
        """Holds SQLite's shared lock until this process ends, so that no other process deletes the log until then."""
        with contextlib.suppress(OSError):
            file = self._folder.open(self.path.name, os.O_RDONLY)
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, _SHARED_BYTES, _SHARED)

    def delete_log(self) -> None:
        """Deletes the write-ahead log if it is empty and no other process has the database open.

        Holds SQLite's exclusive lock meanwhile, as SQLite itself does when it deletes a log.
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


def _cut_short(beginning: bytes, whole: bytes) -> bool:
    """Returns True if a file consists of only the first 1 to 3 bytes of `whole`.

    A process that was killed may leave such a file. It does no harm, because SQLite overwrites it.
    beginning: the first 4 bytes of the file, or all bytes of a shorter file. whole: the first 4 bytes of an uncut file.
    """
    return 0 < len(beginning) < 4 and whole.startswith(beginning)


def _uri(path: Path) -> str:
    return "file:" + quote(os.fsencode(path.absolute()))
