"""A folder that is kept open, so that its files are accessed through its descriptor and not by path.

Another folder that comes to the same path later, by a rename or a new build, is never read or written.
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

_FLAGS = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC


class Folder:
    """An open folder. Safe for several threads.

    path: for messages.
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
        """Opens a subfolder; a missing one, unless it is created, is a `Folder` without files. Raises OSError."""
        if create:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=self.descriptor)
        try:
            return Folder(self.path / name, os.open(name, _FLAGS, dir_fd=self.descriptor))
        except (FileNotFoundError, NotADirectoryError):
            return Folder(self.path / name, None)

    def close(self) -> None:
        """Releases the descriptor. The folder cannot be used afterwards."""
        if self._closed is not None:
            self._closed()
        self._descriptor = None

    @property
    def descriptor(self) -> int:
        """For `dir_fd=`. Raises FileNotFoundError for a folder that is missing."""
        if self._descriptor is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(self.path))
        return self._descriptor

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode, unique while the folder is open; zeros if it is missing."""
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
        """Returns numbers of which at least one changes when the folder at `path`, or the link to it, is renamed.

        They also change whenever a file is created or deleted next to it.
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
        """A path that leads through the descriptor, for libraries that open files themselves.

        On systems without /proc, the current path of the folder. Raises FileNotFoundError.
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
        """Opens a file; returns the descriptor, which the caller closes. Raises OSError."""
        return os.open(name, flags | os.O_CLOEXEC, 0o666, dir_fd=self.descriptor)

    def stat(self, name: str) -> os.stat_result:
        return os.stat(name, dir_fd=self.descriptor)

    def exists(self, name: str) -> bool:
        """Returns True if there is a file or folder with this name."""
        try:
            self.stat(name)
        except OSError:
            return False
        return True

    def names(self) -> list[str]:
        """Returns the names of all files and folders. Raises OSError."""
        descriptor = self.open(".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            return os.listdir(descriptor)
        finally:
            os.close(descriptor)

    def read(self, name: str) -> bytes:
        """Returns the content of a file. Raises OSError."""
        with open(self.open(name), "rb") as file:
            return file.read()

    def write(self, name: str, data: bytes) -> None:
        """Replaces a file by `data`, atomically and durably. Raises OSError."""
        with replacing(name, self.descriptor) as file:
            file.write(data)

    def link(self, old: str, new: str) -> None:
        """Gives a file a second name. Raises OSError."""
        os.link(old, new, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)

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

    def pin(self, name: str) -> Pinned:
        """Pins a file, so that its inode is not reused. Raises OSError."""
        flag = getattr(os, "O_PATH", None)
        if flag is None:
            facts = self.stat(name)
            return Pinned((facts.st_dev, facts.st_ino), None)
        descriptor = self.open(name, flag)
        facts = os.fstat(descriptor)
        return Pinned((facts.st_dev, facts.st_ino), descriptor)


class Pinned:
    """A file whose inode is not reused by another file during the lifetime of this object.

    The descriptor is opened with O_PATH: closing any other kind would drop SQLite's locks on the file.
    """

    def __init__(self, identity: tuple[int, int], descriptor: int | None) -> None:
        self.identity = identity
        if descriptor is not None:
            weakref.finalize(self, os.close, descriptor)


def identity_of(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Returns the device and inode of the file or folder at a path; zeros if there is none."""
    try:
        facts = os.stat(path)
    except OSError:
        return 0, 0
    return facts.st_dev, facts.st_ino
