"""Reads and checks files for a clean-up, and renames, links and copies them without ever overwriting a file."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import stat
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from simsearch.common.atomic_files import sync_folder
from simsearch.errors import ImageError, SimsearchError

if TYPE_CHECKING:
    from simsearch.images.sources.base import Source

BLOCK = 1 << 20
"""Bytes read or copied at once."""

_HERE, _NO_REPLACE = -100, 1
"""Arguments of Linux's renameat2: AT_FDCWD and RENAME_NOREPLACE."""

_WITHOUT_LINKS = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Errors of `os.link` that mean that the file system has no hard links."""


class UnusableError(SimsearchError):
    """A file cannot be acted on, so it is left as it is. The message is the reason, such as "it is a link"."""


@dataclass(frozen=True)
class State:
    """Identifies a regular file and its content. A file has not changed if its state is still the same.

    Renaming the file or linking to it does not change the state. stamp: the modification time in ns.
    """

    device: int
    inode: int
    size: int
    stamp: int

    @classmethod
    def of(cls, facts: os.stat_result) -> State:
        return cls(facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)

    @classmethod
    def at(cls, path: str) -> State | None:
        """Returns the state of the regular file at `path`; None if `path` is a link or a folder, or does not exist."""
        try:
            facts = os.lstat(path)
        except (OSError, ValueError):
            return None
        return cls.of(facts) if stat.S_ISREG(facts.st_mode) else None


def read_state(path: str) -> tuple[bytes, os.stat_result]:
    """Reads a regular file and returns the SHA-256 of its content, and its `os.stat` result.

    Raises UnusableError if the file is missing, is a link or not a regular file, cannot be read, or changes while it is
    read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise UnusableError("the file is gone") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UnusableError("it is a link") from error
        raise UnusableError(f"it cannot be read: {error.strerror}") from error
    before = os.fstat(descriptor)
    if not stat.S_ISREG(before.st_mode):
        os.close(descriptor)
        raise UnusableError("it is not a regular file")
    with open(descriptor, "rb") as file:
        found = hashlib.sha256()
        try:
            while block := file.read(BLOCK):
                found.update(block)
        except OSError as error:
            raise UnusableError(f"it cannot be read: {error.strerror}") from error
        after = os.fstat(descriptor)
    if State.of(before) != State.of(after) or State.at(path) != State.of(after):
        raise UnusableError("it is being changed")
    return found.digest(), after


class Original:
    """The picture of a group that is kept: a file, or a picture in an archive or a table.

    path: the absolute path of a file; for a picture in an archive or a table, the path to show.
    digest: SHA-256 of its content when it was indexed.
    source: the archive or table that contains the picture; None for a file. within: the path within `source`.
    state: the state of a file when `check` read it. It is None until `check` is called. For a picture in an archive or
    a table, it is always None.
    """

    def __init__(self, path: str, digest: bytes, source: Source | None = None, within: str = "") -> None:
        self.path, self.digest = path, digest
        self._source, self._within = source, within
        self.state: State | None = None

    def check(self) -> None:
        """Reads the whole picture. Raises UnusableError if it is missing or has changed since it was indexed."""
        if self._source is None:
            digest, facts = read_state(self.path)
            self.state = State.of(facts)
        else:
            try:
                digest = hashlib.sha256(self._source.read(self._within)).digest()
            except ImageError as error:
                raise UnusableError(str(error)) from error
        if digest != self.digest:
            raise UnusableError("it has changed since it was indexed")

    def is_there(self) -> bool:
        """Returns True if the picture that was read by `check` still exists, unchanged, at the same path."""
        if self._source is None:
            return self.state is not None and State.at(self.path) == self.state
        try:
            self.check()
        except UnusableError:
            return False
        return True


def rename_new(old: str, new: str) -> None:
    """Renames a file within a file system. Raises FileExistsError if there is a file at `new` already.

    Some systems have no call that renames without replacing. There, the file gets `new` as a second name (a hard link),
    then loses the old name. This fails on file systems without hard links, such as exFAT mounted through FUSE.
    Raises OSError if the file cannot be renamed.
    """
    if _renameat2 is not None:
        if not _renameat2(_HERE, os.fsencode(old), _HERE, os.fsencode(new), _NO_REPLACE):
            return
        code = ctypes.get_errno()
        if code not in (errno.ENOSYS, errno.EINVAL):
            raise OSError(code, os.strerror(code), old, None, new)
    link_new(old, new, "this file system cannot rename a file without the risk of replacing another one")
    try:
        if State.at(old) != State.at(new):  # another file has taken the old name in the meantime
            raise OSError(errno.EBUSY, "it is being changed", old)
        os.unlink(old)
    except OSError:
        os.unlink(new)
        raise


def link_new(old: str, new: str, problem: str = "this file system has no hard links") -> None:
    """Creates `new` as a hard link to the file `old`. Raises OSError.

    problem: the message of the error if the file system has no hard links.
    """
    try:
        os.link(old, new, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _WITHOUT_LINKS:
            raise
        raise OSError(error.errno, problem, old, None, new) from error


def _find_renameat2() -> Any:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            return ctypes.CDLL(None, use_errno=True).renameat2
    return None


_renameat2 = _find_renameat2()


def copy_new(old: str, new: str, digest: bytes) -> None:
    """Copies a file with its times, permissions and attributes, and reads the copy back from disk.

    Raises OSError, FileExistsError if there is a file at `new`, and UnusableError if the SHA-256 of the copy is not
    `digest`.
    """
    with open(old, "rb") as source, open(new, "xb") as target:
        while block := source.read(BLOCK):
            target.write(block)
        target.flush()
        os.fsync(target.fileno())
        with contextlib.suppress(AttributeError, OSError):  # read from disk, not from memory
            os.posix_fadvise(target.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    copy_facts(old, new)
    if read_state(new)[0] != digest:
        raise UnusableError("the copy differs from the file")


def copy_facts(old: str, new: str) -> None:
    """Gives the file `new` the owner, permissions, attributes and times of `old`, as far as the system permits."""
    facts = os.lstat(old)
    with contextlib.suppress(OSError):
        os.chown(new, facts.st_uid, facts.st_gid)
    with contextlib.suppress(OSError, AttributeError):
        for name in os.listxattr(old):
            os.setxattr(new, name, os.getxattr(old, name))
    with contextlib.suppress(OSError):
        os.chmod(new, stat.S_IMODE(facts.st_mode))
    os.utime(new, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def make_folders(path: str) -> list[str]:
    """Creates a folder and its missing parents, flushed to disk. Returns the missing folders, the deepest first."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
        sync_folders(folder)
    return missing


def sync_folders(*paths: str) -> None:
    """Flushes the parent folders of the given paths to disk, if the file system supports that. Raises OSError."""
    for folder in dict.fromkeys(os.path.dirname(path) for path in paths):
        try:
            sync_folder(folder)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems
                raise
