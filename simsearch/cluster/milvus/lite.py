"""Checks files of Milvus Lite, counts the clients that have each file open, and closes a file after its last client.

Milvus Lite is a database that runs inside this process.
"""

from __future__ import annotations

import fcntl
import threading
from pathlib import Path

from simsearch.cluster.milvus import hints
from simsearch.errors import IndexLockedError, IndexNotFoundError, MissingExtraError, UsageError

_open_counts: dict[Path, int] = {}
_lock = threading.Lock()


def check_file(file: Path, writing: bool) -> None:
    """Checks that a file of Milvus Lite can be opened. writing: True if the file may be created.

    Raises MissingExtraError, IndexNotFoundError if the file does not exist, UsageError if Milvus Lite cannot use it,
    IndexLockedError if another process has it open.
    """
    try:
        import milvus_lite  # noqa: F401
    except ImportError:
        # Its dependency faiss-cpu would overwrite the files of faiss-gpu, hence --no-deps.
        raise MissingExtraError("Milvus Lite", "cluster", packages="--no-deps milvus-lite pyarrow") from None
    if not writing and not file.exists():
        raise IndexNotFoundError(f"there is no file {file}", **hints.make_one(f"milvus://{file}"))
    if not file.parent.is_dir():
        raise UsageError(f"{file} cannot be written: its folder does not exist")
    if file.exists() and not file.is_dir():
        raise UsageError(f"{file} was not made by Milvus Lite 3", hint="name another file")
    with _lock:
        if _open_counts.get(file) or not (file / "LOCK").exists():
            return
        with (file / "LOCK").open("rb") as lock_file:
            try:
                fcntl.flock(lock_file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                message = f"another process has {file} open"
                raise IndexLockedError(
                    message, hint="only one process at a time can use a file; use a Milvus server for several"
                ) from None


def acquire(file: Path) -> None:
    """Adds one to the number of clients that have a file open."""
    with _lock:
        _open_counts[file] = _open_counts.get(file, 0) + 1


def release(file: Path) -> None:
    """Subtracts one from the number of clients that have a file open, and closes the file if no client is left."""
    with _lock:
        _open_counts[file] -= 1
        if not _open_counts[file]:
            from milvus_lite.server_manager import server_manager_instance

            server_manager_instance.release_server(str(file))
