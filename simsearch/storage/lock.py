"""The writer lock of an index, which only one process at a time can hold. It is released when the process ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from simsearch.errors import IndexLockedError, UsageError
from simsearch.storage.folder import Folder, NotRegularError

if TYPE_CHECKING:
    from collections.abc import Iterator

_HOLDER = re.compile(rb"\d{0,20}")
"""The content of a lock file: the process id of the last process that held the lock."""


@contextlib.contextmanager
def writer_lock(folder: Folder | Path, patience: float = 0.0) -> Iterator[None]:
    """Holds the index's writer lock during the block. The system releases the lock if the process dies.

    folder: the index's folder. patience: seconds to wait for another writer.
    Raises IndexLockedError if another writer does not finish in time, and UsageError if the lock file cannot be used.
    """
    place = folder.path if isinstance(folder, Folder) else folder
    try:
        opened = folder if isinstance(folder, Folder) else Folder.at(folder)
        descriptor = opened.open("writer.lock", os.O_RDWR | os.O_CREAT)
    except NotRegularError as error:
        raise UsageError(f"{place / 'writer.lock'}: {error.strerror}", hint="delete this file") from error
    except OSError as error:
        raise UsageError(f"the index {place} cannot be written: {error.strerror}") from error
    try:
        latest = time.monotonic() + patience
        while not _try_lock(descriptor):
            if time.monotonic() < latest:
                time.sleep(0.05)
                continue
            holder = _HOLDER.fullmatch(os.pread(descriptor, 32, 0))
            who = f"process {holder[0].decode()}" if holder and holder[0] else "another process"
            raise IndexLockedError(
                f"{who} is writing to {place}",
                hint="wait until the other process has finished; reading is possible meanwhile",
            )
        if not _HOLDER.fullmatch(os.pread(descriptor, 64, 0)):  # perhaps a hard link to another file
            raise UsageError(f"{place / 'writer.lock'} is not a lock file of simsearch", hint="delete this file")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    """Tries to lock an open file; returns True on success."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
