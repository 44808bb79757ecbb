"""Opens files without waiting for the other end of a pipe, and without reading devices, whose data may never end."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import IO


def open_regular(path: Path) -> IO[bytes]:
    """Opens a regular file to read it. Raises OSError, also for a folder, a pipe or a device."""
    return open(path, "rb", opener=_open)


def open_nonblocking(path: str, flags: int) -> int:
    """An `opener` for `open` that does not wait, even if the file is a pipe that no process writes to."""
    return os.open(path, flags | os.O_NONBLOCK)


def _open(path: str, flags: int) -> int:
    descriptor = open_nonblocking(path, flags)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise OSError(errno.EINVAL, "not a regular file", path)
