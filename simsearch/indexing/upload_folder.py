"""The pictures that were added over HTTP: files in `uploads/` in the index, and the manifest that lists them.

The manifest is a file of JSON lines, and one of the index's sources. The name of a picture's file is the SHA-256 of its
content. A process that dies can leave a file or an item without a line in the manifest, or an incomplete line. The next
service, build or compaction repairs this.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterator

from simsearch.common import outside_json
from simsearch.errors import IndexDamagedError, SimsearchError, UsageError
from simsearch.images.sources.tables import ManifestSource
from simsearch.storage.folder import Folder
from simsearch.storage.index import Index

FOLDER, MANIFEST = "uploads", "items.jsonl"

_EMPTIED = b"\n"
"""The content of a manifest from which all lines were removed on purpose; a build may then remove all of its items.

For a manifest of 0 bytes, a build raises an error instead, since the content may have been lost.
"""

_NAME = re.compile("[0-9a-f]{64}")


def manifest_path(index: Index) -> str:
    """Returns the path of the manifest, which is also the root of its source."""
    return str(index.folder.place / FOLDER / MANIFEST)


def open_folder(index: Index, create: bool = False) -> Folder:
    """Opens the folder `uploads/` of an index. Raises UsageError if it cannot be opened or created.

    create: True to create the folder if it is missing; see `Folder.child`.
    """
    try:
        return index.folder.child(FOLDER, create)
    except OSError as error:
        verb = "open or create" if create else "open"
        raise UsageError(f"cannot {verb} {index.path / FOLDER}: {error.strerror}") from error


@contextlib.contextmanager
def locked(folder: Folder, wait: bool = True) -> Iterator[None]:
    """Locks the folder `uploads/` during the block, so that no other process uses it.

    wait: False to raise BlockingIOError if another process holds the lock.
    Raises OSError if the folder cannot be locked.
    """
    descriptor = folder.open_itself()
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


# -- for builds and compactions


@contextlib.contextmanager
def settled(index: Index) -> Iterator[None]:
    """Removes an incomplete last line of the manifest, and keeps services from changing the manifest during the block.

    A build uses this while it holds the writer lock. Before the block, an upload that is under way is awaited: it
    cannot get the writer lock, so it fails and removes its own line from the manifest. Errors are ignored.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(SimsearchError, OSError):
            folder = open_folder(index)
            if folder.exists(MANIFEST):
                stack.enter_context(locked(folder))
                complete_lines(folder)
        yield


def was_emptied(index: Index) -> bool:
    """Returns True if all lines of the manifest were removed on purpose, so that a build may remove their items."""
    with contextlib.suppress(SimsearchError, OSError):
        return open_folder(index).read(MANIFEST, len(_EMPTIED)) == _EMPTIED
    return False


def clean(index: Index) -> None:
    """Deletes files in `uploads/` that interrupted processes left.

    Does nothing while a service is writing there, or if the folder cannot be changed.
    """
    with contextlib.suppress(SimsearchError, OSError):
        folder = open_folder(index)
        if folder.identity != (0, 0):
            with locked(folder, wait=False):
                sweep(index, folder)


# -- for callers that have locked the folder


def sweep(index: Index, folder: Folder) -> None:
    """Deletes incomplete files, and pictures that have neither an item nor a line in the manifest.

    A picture with a line but without an item stays, since the next build indexes it. The caller has locked the folder.
    Raises OSError and IndexDamagedError.
    """
    known = names(index) | listed(folder)
    for name in folder.names():
        partial = name.startswith(".") and name.endswith((".partial", ".tmp"))
        if partial or (_NAME.fullmatch(name) and name not in known):
            folder.unlink(name)


def names(index: Index) -> set[str]:
    """Returns the names of the files in `uploads/` that are items of the index."""
    with index.reading() as reader:
        for source in reader.sources():
            if source.kind == ManifestSource.kind and index.root_of(source) == manifest_path(index):
                return {item.path for item in reader.items(source.id)}
    return set()


def listed(folder: Folder) -> set[str]:
    """Returns the file names in the manifest. Raises OSError, and IndexDamagedError for a line without a file name."""
    lines = folder.read(MANIFEST).splitlines(keepends=True) if folder.exists(MANIFEST) else []
    found = {_name_in(line) for line in lines if line.endswith(b"\n") and line.strip()}
    if "" in found:
        raise IndexDamagedError(f"{folder.path / MANIFEST} has a line without a path")
    return found


def keep_lines(folder: Folder, wanted: Callable[[str], bool]) -> bytes | None:
    """Removes an incomplete last line from the manifest, and each line whose file name is not wanted.

    wanted: returns True for a file name to keep. A damaged line, which has no file name, stays.
    Returns the former content of the manifest if a line was removed, else None. Raises OSError.
    """
    before = folder.read(MANIFEST) if folder.exists(MANIFEST) else b""
    lines = before.splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n") and (not (name := _name_in(line)) or wanted(name))]
    if kept == lines:
        return None
    folder.write(MANIFEST, b"".join(kept) or _EMPTIED)
    return before


def append_line(folder: Folder, line: str) -> None:
    """Appends a line to the manifest, durably; first removes an incomplete last line. Raises OSError."""
    complete_lines(folder)
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
    with open(folder.open(MANIFEST, flags), "ab") as file:
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def complete_lines(folder: Folder) -> None:
    """Removes an incomplete line at the end of the manifest, which a crash may have left. Raises OSError."""
    if not folder.exists(MANIFEST):
        return
    with open(folder.open(MANIFEST, os.O_RDWR), "r+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        if end and file.read() != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            os.fsync(file.fileno())


def _name_in(line: bytes) -> str:
    """Returns the file name in a line of the manifest; empty if there is none."""
    try:
        name = outside_json.parse(line)["path"]
    except (ValueError, TypeError, KeyError):
        return ""
    return name if isinstance(name, str) else ""
