"""The writer lock of an index; it is released when its process ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from simsearch.errors import IndexLockedError, UsageError
from simsearch.storage.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def writer_lock(folder: Folder | Path, patience: float = 0.0) -> Iterator[None]:
    """Holds the index's writer lock, which the system releases when the process dies.

    patience: seconds to wait for another writer. Raises IndexLockedError.
    """
    place = folder.path if isinstance(folder, Folder) else folder
    try:
        opened = folder if isinstance(folder, Folder) else Folder.at(folder)
        descriptor = opened.open("writer.lock", os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise UsageError(f"the index {place} cannot be written: {error.strerror}") from error
    try:
        latest = time.monotonic() + patience
        while not _taken(descriptor):
            if time.monotonic() < latest:
                time.sleep(0.05)
                continue
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            who = f"process {holder}" if holder else "another process"
            raise IndexLockedError(f"{who} is writing to {place}", hint="wait for it; reading is possible")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _taken(descriptor: int) -> bool:
    """Whether the lock on an open file is now this process's."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
