"""Writing a file whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from simsearch.errors import UsageError


def atomic_write(path: Path, data: bytes) -> None:
    """Leaves all of `data` at `path`, or what was there before; a link stays one. UsageError: no way to write there."""
    target = Path(os.path.realpath(path))
    temporary = target.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        if path.exists() and not path.is_file():  # replacing a device, or /dev/stdout, would remove it
            raise UsageError(f"cannot write {path}: it is not a regular file")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        hint = f"create the folder {path.parent} first" if isinstance(error, FileNotFoundError) else None
        raise UsageError(f"cannot write {path}: {error.strerror or error}", hint=hint) from error


def sync_folder(folder: Path) -> None:
    """Makes the names of new files in a folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
