"""A folder that is held open, so that its files are reached through its descriptor and never again by its path.

Whatever is put at the path later, by a rename or a new build, is another folder: nothing here reads or writes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import weakref
from pathlib import Path

_FLAGS = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC


class Folder:
    """An open folder. Safe for several threads.

    path: as the caller names it, for messages. descriptor: None for a folder that is missing, each file of which is
    missing, too.
    """

    def __init__(self, path: Path, descriptor: int | None) -> None:
        self.path, self.place, self._descriptor = path, path.absolute(), descriptor
        self._closed = weakref.finalize(self, os.close, descriptor) if descriptor is not None else None

    @classmethod
    def at(cls, path: Path) -> Folder:
        """Opens the folder at a path. Raises OSError."""
        return cls(path, os.open(path, _FLAGS))

    def child(self, name: str, create: bool = False) -> Folder:
        """A folder in this one; one that is missing, unless it is created, gives a `Folder` without files."""
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
        """Device and inode, which no other folder can have while this one is open; zeros if it is missing."""
        if self._descriptor is None:
            return 0, 0
        facts = os.fstat(self._descriptor)
        return facts.st_dev, facts.st_ino

    def current_path(self) -> Path | None:
        """Where the folder is now; None if it is gone, or if the system cannot tell where it was moved to."""
        if identity_of(self.place) == self.identity:
            return self.place
        with contextlib.suppress(OSError):
            moved = Path(os.readlink(f"/proc/self/fd/{self.descriptor}"))
            if identity_of(moved) == self.identity:
                return moved
        return None

    @property
    def through(self) -> Path:
        """A path that leads through the descriptor, for libraries that open files themselves.

        Where the system has none (Linux has), the path at which the folder is now. Raises FileNotFoundError.
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
        """A descriptor of a file, which the caller closes. Raises OSError."""
        return os.open(name, flags | os.O_CLOEXEC, 0o666, dir_fd=self.descriptor)

    def stat(self, name: str) -> os.stat_result:
        return os.stat(name, dir_fd=self.descriptor)

    def exists(self, name: str) -> bool:
        """True if there is a file or folder of that name."""
        try:
            self.stat(name)
        except OSError:
            return False
        return True

    def names(self) -> list[str]:
        """The names of all files and folders. Raises OSError."""
        descriptor = self.open(".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            return os.listdir(descriptor)
        finally:
            os.close(descriptor)

    def read(self, name: str) -> bytes:
        """The content of a file. Raises OSError."""
        with open(self.open(name), "rb") as file:
            return file.read()

    def write(self, name: str, data: bytes) -> None:
        """Leaves all of `data` under a name, durably, or what was there before. Raises OSError."""
        partial = f".{name}.partial"
        with open(self.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, name, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)
        self.sync()

    def link(self, old: str, new: str) -> None:
        """Gives a file a second name. Raises OSError."""
        os.link(old, new, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)

    def unlink(self, name: str) -> None:
        """Deletes a file, if there is one. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self.descriptor)

    def remove(self, name: str) -> None:
        """Deletes a file, or a folder with all that is in it. Raises OSError."""
        if stat.S_ISDIR(os.stat(name, dir_fd=self.descriptor, follow_symlinks=False).st_mode):
            shutil.rmtree(name, dir_fd=self.descriptor)
        else:
            os.unlink(name, dir_fd=self.descriptor)

    def sync(self) -> None:
        """Makes the names of new files survive a power failure. Raises OSError."""
        descriptor = self.open(".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def pin(self, name: str) -> Pinned:
        """Keeps hold of a file's identity. Raises OSError."""
        flag = getattr(os, "O_PATH", None)
        if flag is None:
            facts = self.stat(name)
            return Pinned((facts.st_dev, facts.st_ino), None)
        descriptor = self.open(name, flag)
        facts = os.fstat(descriptor)
        return Pinned((facts.st_dev, facts.st_ino), descriptor)


class Pinned:
    """A file that keeps its inode, so that no other file can come to have the same, while this object lives.

    The descriptor is opened by O_PATH: closing another kind would drop the locks that SQLite has on the file.
    """

    def __init__(self, identity: tuple[int, int], descriptor: int | None) -> None:
        self.identity = identity
        if descriptor is not None:
            weakref.finalize(self, os.close, descriptor)


def identity_of(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Device and inode of what is at a path; zeros where there is nothing."""
    try:
        facts = os.stat(path)
    except OSError:
        return 0, 0
    return facts.st_dev, facts.st_ino
