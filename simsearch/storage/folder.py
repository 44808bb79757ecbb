"""A folder that is kept open: its files are accessed through the folder's descriptor, not by path.

If another folder is put at the same path later, by a rename or a new build, its files are never read or written. Only
regular files and folders are opened. Symbolic links, devices, pipes and sockets are refused, since an index may come
from a stranger.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import weakref
from pathlib import Path

from simsearch.common.atomic_files import replacing, sync_folder
from simsearch.errors import IndexDamagedError, SimsearchError

_FLAGS = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC

_DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EFBIG}
"""Error codes that mean that a file of the index is missing or wrong; other codes mean a failure of the system."""

_KINDS = {
    stat.S_IFREG: "a regular file",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class NotRegularError(OSError):
    """Something else, such as a symbolic link or a device, is in the place of a file or folder of an index.

    wanted: what should be at the path, for the message.
    """

    def __init__(self, mode: int, path: Path, wanted: str = "a regular file") -> None:
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.ELOOP
        super().__init__(code, f"it is {kind}, not {wanted}", os.fspath(path))


def error_for(path: object, error: OSError) -> SimsearchError:
    """Converts an OSError about a file of an index to the error to raise.

    Returns IndexDamagedError if the file is missing or wrong. Returns SimsearchError if the system cannot read it: no
    permission, too many open files, a full disk.
    """
    message = f"{path}: {error.strerror or error}"
    return IndexDamagedError(message) if error.errno in _DAMAGE else SimsearchError(message)


class Folder:
    """An open folder, whose methods take the names of files and subfolders in it. Safe for several threads.

    path: the path of the folder, for messages.
    descriptor: None for a missing folder; opening a file in it raises FileNotFoundError.
    """

    def __init__(self, path: Path, descriptor: int | None) -> None:
        self.path, self.place, self._descriptor = path, path.absolute(), descriptor
        self._closed = weakref.finalize(self, os.close, descriptor) if descriptor is not None else None

    @classmethod
    def at(cls, path: Path) -> Folder:
        """Opens the folder at a path. Raises OSError."""
        return cls(path, os.open(path, _FLAGS))

    def child(self, name: str, create: bool = False) -> Folder:
        """Opens a subfolder. create: True to create it if it is missing.

        If it is missing and `create` is False, returns a `Folder` without a descriptor. A file with this name then
        counts as a missing subfolder. Raises OSError. Raises NotRegularError if the name is that of a link, or if
        `create` is True and the name is that of a file.
        """
        if create:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=self.descriptor)
        try:
            return Folder(self.path / name, os.open(name, _FLAGS | os.O_NOFOLLOW, dir_fd=self.descriptor))
        except (FileNotFoundError, NotADirectoryError):
            with contextlib.suppress(FileNotFoundError):
                facts = self.stat(name)
                if create or stat.S_ISLNK(facts.st_mode):
                    raise NotRegularError(facts.st_mode, self.path / name, "a folder") from None
            return Folder(self.path / name, None)

    def close(self) -> None:
        """Closes the descriptor. The folder cannot be used afterwards."""
        if self._closed is not None:
            self._closed()
        self._descriptor = None

    @property
    def descriptor(self) -> int:
        """The open descriptor, for `dir_fd=`. Raises FileNotFoundError if the folder is missing."""
        if self._descriptor is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(self.path))
        return self._descriptor

    @property
    def identity(self) -> tuple[int, int]:
        """The folder's device and inode number, unique while the folder is open; zeros if the folder is missing."""
        if self._descriptor is None:
            return 0, 0
        facts = os.fstat(self._descriptor)
        return facts.st_dev, facts.st_ino

    def current_path(self) -> Path | None:
        """Returns the current path of the folder; None if it was deleted or cannot be found."""
        if identity_of(self.place) == self.identity:
            return self.place
        with contextlib.suppress(OSError):
            moved = Path(os.readlink(f"/proc/self/fd/{self.descriptor}"))
            if identity_of(moved) == self.identity:
                return moved
        return None

    def moves(self, path: Path) -> tuple[int, ...]:
        """Returns numbers that change when the folder is renamed; if they are still the same later, it has not moved.

        If they have changed, the folder may have moved or not: the numbers also change when a link to the folder is
        renamed, and when a file is created or deleted in the parent folder.
        path: the current path of the folder.
        """
        found: list[int] = []
        for each in dict.fromkeys((path.parent, self.place.parent)):
            with contextlib.suppress(OSError):
                found += os.stat(each).st_ino, os.stat(each).st_mtime_ns
        with contextlib.suppress(OSError):
            found.append(os.lstat(self.place).st_ino)
        return tuple(found)

    @property
    def descriptor_path(self) -> Path:
        """A path of the folder, for libraries that open files themselves.

        The path `/proc/self/fd/N` leads through the descriptor, so it stays right if the folder moves. On systems
        without /proc, the current path of the folder is used. Raises FileNotFoundError if the folder is missing.
        """
        path = Path(f"/proc/self/fd/{self.descriptor}")
        if identity_of(path) == self.identity:
            return path
        found = self.current_path()
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(self.path))
        return found

    # -- files

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """Opens a regular file; returns the descriptor, which the caller closes. flags: as for `os.open`.

        Raises NotRegularError for a link, folder, pipe or device. Does not block, even for a pipe that no process
        writes to. Raises OSError if the file cannot be opened.
        """
        path = self.path / name
        with contextlib.suppress(FileNotFoundError):
            facts = self.stat(name)
            if not stat.S_ISREG(facts.st_mode):
                raise NotRegularError(facts.st_mode, path)
        descriptor = os.open(name, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666, dir_fd=self.descriptor)
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            os.close(descriptor)
            raise NotRegularError(facts.st_mode, path)
        return descriptor

    def stat(self, name: str) -> os.stat_result:
        """Returns the `os.stat_result` of a file, folder or link; links are not followed. Raises OSError."""
        return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)

    def exists(self, name: str) -> bool:
        """Returns True if there is a file, folder or link with this name."""
        try:
            self.stat(name)
        except OSError:
            return False
        return True

    def names(self) -> list[str]:
        """Returns the names of all files and subfolders. Raises OSError."""
        descriptor = self.open_itself()
        try:
            return os.listdir(descriptor)
        finally:
            os.close(descriptor)

    def read(self, name: str, limit: int | None = None) -> bytes:
        """Returns the content of a file. Raises OSError, also if the file has more than `limit` bytes."""
        with open(self.open(name), "rb") as file:
            if limit is not None and os.fstat(file.fileno()).st_size > limit:
                message = f"it has more than {limit:,} bytes"
                raise OSError(errno.EFBIG, message, os.fspath(self.path / name))
            return file.read()

    def create(self, name: str) -> int:
        """Creates an empty file, replacing any file of that name; returns its descriptor for reading and writing.

        The old file is unlinked, not overwritten, as it may be a hard link to a file elsewhere. Raises OSError.
        """
        self.unlink(name)
        return self.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)

    def write(self, name: str, data: bytes | memoryview, *more: bytes) -> None:
        """Replaces the content of a file by `data` followed by `more`, atomically and durably. Raises OSError."""
        with replacing(name, self.descriptor) as file:
            for part in (data, *more):
                file.write(part)

    def link(self, old: str, new: str) -> None:
        """Creates a hard link `new` to the file `old`. Raises OSError."""
        os.link(old, new, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor, follow_symlinks=False)

    def unlink(self, name: str) -> None:
        """Deletes a file, if there is one. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.descriptor)

    def remove(self, name: str) -> None:
        """Deletes a file, or a folder with its content. Raises OSError."""
        if stat.S_ISDIR(os.stat(name, dir_fd=self.descriptor, follow_symlinks=False).st_mode):
            shutil.rmtree(name, dir_fd=self.descriptor)
        else:
            os.unlink(name, dir_fd=self.descriptor)

    def sync(self) -> None:
        """Syncs the folder to disk, so that new file names survive a power failure. Raises OSError."""
        sync_folder(".", self.descriptor)

    def open_itself(self) -> int:
        """Opens the folder for listing, locking and syncing; the caller closes the descriptor. Raises OSError."""
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.descriptor)

    def pin(self, name: str) -> Pinned:
        """Returns a `Pinned` for a regular file. As long as the `Pinned` exists, the file's inode number is not reused.

        Raises OSError and NotRegularError.
        """
        facts, descriptor = self.stat(name), None
        if (flag := getattr(os, "O_PATH", None)) is not None:
            descriptor = os.open(name, flag | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.descriptor)
            facts = os.fstat(descriptor)
        pinned = Pinned((facts.st_dev, facts.st_ino), descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise NotRegularError(facts.st_mode, self.path / name)
        return pinned


class Pinned:
    """A file that is kept open as long as this object exists, so that no other file gets its inode number.

    identity: the file's device and inode number.
    The file is opened with O_PATH, because closing an ordinary descriptor would release all locks of this process on
    the file, including those of SQLite. On systems without O_PATH, such as macOS, the file is not kept open.
    """

    def __init__(self, identity: tuple[int, int], descriptor: int | None) -> None:
        self.identity = identity
        if descriptor is not None:
            weakref.finalize(self, os.close, descriptor)


def identity_of(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Returns the device and inode number of the file or folder at a path; (0, 0) if there is nothing."""
    try:
        facts = os.stat(path)
    except OSError:
        return 0, 0
    return facts.st_dev, facts.st_ino
