"""Atomic file writes: a file gets its name only when it is complete and on disk."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from simsearch.errors import UsageError

_PARTIAL = re.compile(r"\.[0-9a-f]{16}\.partial")
_ABANDONED = 24 * 3600.0
"""A partial file that has not changed for this number of seconds counts as left by a killed process."""


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], folder: int | None = None) -> Iterator[BinaryIO]:
    """Yields a new binary file that replaces the file at `path` when the block ends, atomically and durably.

    If the block raises an exception, the new file is deleted and the old file is kept. During the block, the new file
    has a random name in the same folder. The attribute `name` of the yielded file is this name, for libraries that open
    files themselves. A symbolic link at `path` is replaced and not followed, so nobody can use a link to have another
    file overwritten.

    folder: the descriptor of an open folder to which `path` is relative; by default, the current folder.
    Raises OSError.
    """
    parent = os.path.dirname(path)
    partial = os.path.join(parent, f".{secrets.token_hex(8)}.partial")

    def open_new(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=folder)

    new = open(partial, "xb", opener=open_new)  # noqa: SIM115
    try:
        with new as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial, dir_fd=folder)
        raise
    sync_folder(parent or ".", folder)


def atomic_write(path: Path, data: bytes, *, follow_links: bool = True) -> None:
    """Replaces a file by `data`, atomically and durably.

    follow_links: if `path` is a symbolic link, True replaces the file that the link leads to, and False the link. Use
    False for paths that the user has not given, such as those of the files in an index.
    Raises UsageError if the file cannot be written.
    """
    try:
        if path.exists() and not path.is_file():  # a rename would delete a device such as /dev/stdout
            raise UsageError(f"cannot write {path}: it is not a regular file")
        with replacing(os.path.realpath(path) if follow_links else path) as file:
            file.write(data)
    except OSError as error:
        hint = f"create the folder {path.parent} first" if isinstance(error, FileNotFoundError) else None
        raise UsageError(f"cannot write {path}: {error.strerror or error}", hint=hint) from error


def is_partial(name: str) -> bool:
    """Returns True for the name of a file that `replacing` has not completed."""
    return _PARTIAL.fullmatch(name) is not None


def delete_abandoned(folder: Path) -> None:
    """Deletes the partial files that killed processes have left in a folder: those that have not changed for a day.

    Raises OSError.
    """
    latest = time.time() - _ABANDONED
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            if is_partial(name) and (folder / name).lstat().st_mtime < latest:
                (folder / name).unlink()


def sync_folder(path: str | os.PathLike[str], folder: int | None = None) -> None:
    """Syncs a folder to disk, so that new file names survive a power failure. folder: as in `replacing`.

    Raises OSError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
