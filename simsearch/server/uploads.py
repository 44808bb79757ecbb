"""Images added over HTTP: files in `uploads/` inside the index, listed by a manifest that is one of its sources."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from simsearch.common import outside_json
from simsearch.common.machine import MemoryBudget
from simsearch.engine import Engine
from simsearch.errors import IndexDamagedError, SimsearchError, UsageError
from simsearch.images import decode, memory
from simsearch.images.sources.tables import ManifestSource
from simsearch.indexing import options, sync
from simsearch.server.reloading import ReloadableIndex
from simsearch.storage.folder import Folder
from simsearch.storage.index import Index

MANIFEST = "items.jsonl"

_NAME = re.compile("[0-9a-f]{64}")
"""The file of an upload: the SHA-256 of its content."""


class Uploads:
    """Adds and removes items, one at a time, since an index has one writer among all threads and processes.

    An upload appends its row to the manifest and, but for the first one of a process, reads no other row, so its time
    does not depend on their number.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._swept: set[tuple[int, int]] = set()

    def add(self, engine: Engine, query: dict[str, Any], largest: int, budget: MemoryBudget) -> tuple[int, bool]:
        """Adds an image; returns its item's id, and True if the item is new. Raises SimsearchError.

        An image that was uploaded before keeps the label and metadata that it has.
        query: `image`, and optionally `label` and `metadata`. largest: the most pixels. budget: memory for decoding.
        """
        data: bytes = query["image"]
        with budget.hold(memory.peak_memory(data, engine.recipe.resize)):
            decode.decode_image(data, engine.recipe.resize, largest)
            return self._add(engine, query, data)

    def _add(self, engine: Engine, query: dict[str, Any], data: bytes) -> tuple[int, bool]:
        name = hashlib.sha256(data).hexdigest()
        engine.index.check_in_place()
        folder = _folder(engine.index, create=True)
        with self._alone(folder):
            self._sweep_once(engine, folder)
            if found := _find(engine, name):
                return found, False
            if folder.exists(name):  # left by a process that died
                _forget(folder, name)
            _write(folder, name, data)
            line = json.dumps({**query.get("metadata", {}), "path": name, "label": query.get("label")})
            try:
                _append(folder, line)
                sync.sync(
                    engine.index,
                    engine.model,
                    [ManifestSource(manifest_path(engine), name, line)],
                    options.BuildOptions(prune=False),
                )
            finally:  # a refused image must not be indexed by the next build
                found = _find(engine, name)
                if found is None:
                    _forget(folder, name)
            if found is None:
                raise SimsearchError("the image could not be indexed")
            return found, True

    def sweep(self, indexes: Iterable[ReloadableIndex]) -> None:
        """Removes what processes left that died while they wrote, unless another process is writing now."""
        for served in indexes:
            with contextlib.suppress(SimsearchError, OSError):
                served.run_once(self._sweep)

    def _sweep(self, engine: Engine) -> None:
        folder = _folder(engine.index)
        if folder.identity != (0, 0):
            with self._alone(folder):
                self._sweep_once(engine, folder)

    def _sweep_once(self, engine: Engine, folder: Folder) -> None:
        """Removes files that were never completed, and pictures without item and line; once for each folder.

        The caller keeps others out of the folder. A line without an item stays: the next build indexes its picture.
        """
        if folder.identity in self._swept:
            return
        self._swept.add(folder.identity)
        with contextlib.suppress(SimsearchError, OSError):  # the next process tries again
            known = _names(engine) | _listed(folder)
            for name in folder.names():
                partial = name.startswith(".") and name.endswith((".partial", ".tmp"))
                if partial or (_NAME.fullmatch(name) and name not in known):
                    folder.unlink(name)

    def remove(self, engine: Engine, number: int) -> None:
        """Removes an item, and its file if it was added over HTTP. Raises ItemNotFoundError.

        The manifest comes first: a process that dies after that leaves an item that the next build removes, while a
        line that was left would bring the picture back.
        """
        folder = _folder(engine.index)
        with self._alone(folder) if folder.identity != (0, 0) else self._lock:
            path = engine.paths([engine.item(number)])[0]
            name = path.rpartition("/")[2]
            if path != str(folder.place / name):
                engine.remove(number)
                return
            self._sweep_once(engine, folder)
            before = _keep_lines(folder, lambda each: each != name)
            try:
                engine.remove(number)
            except BaseException:
                if before is not None:
                    _write(folder, MANIFEST, before)
                raise
            with contextlib.suppress(OSError):  # the next sweep removes it
                folder.unlink(name)

    @contextlib.contextmanager
    def _alone(self, folder: Folder) -> Iterator[None]:
        """Keeps other threads and processes out of the folder."""
        with self._lock:
            descriptor = folder.open_itself()
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)


def _folder(index: Index, create: bool = False) -> Folder:
    """Opens the folder of uploads in the open index. Raises UsageError."""
    try:
        return index.folder.child("uploads", create)
    except OSError as error:
        raise UsageError(f"cannot write {index.path / 'uploads'}: {error.strerror}") from error


def manifest_path(engine: Engine) -> str:
    """Returns the path of the manifest of uploads, the root of their source."""
    return str(engine.index.folder.place / "uploads" / MANIFEST)


def _write(folder: Folder, name: str, data: bytes) -> None:
    """Writes a file atomically and durably. Raises UsageError."""
    try:
        folder.write(name, data)
    except OSError as error:
        raise UsageError(f"cannot write {folder.path / name}: {error.strerror}") from error


def _find(engine: Engine, name: str) -> int | None:
    """Returns the id of an upload's item; None if there is none."""
    with engine.index.reading() as reader:
        for source in reader.sources():
            if source.kind == ManifestSource.kind and engine.index.root_of(source) == manifest_path(engine):
                return next((item.id for item in reader.items(source.id, name)), None)
    return None


def _append(folder: Folder, line: str) -> None:
    """Appends a line to the manifest, durably; first removes an incomplete line that a crash may have left."""
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        with open(folder.open(MANIFEST, flags), "a+b") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            if end and file.read() != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UsageError(f"cannot write {folder.path / 'items.jsonl'}: {error.strerror}") from error


def _names(engine: Engine) -> set[str]:
    """Returns the file names of all items that were added over HTTP."""
    with engine.index.reading() as reader:
        for source in reader.sources():
            if source.kind == ManifestSource.kind and engine.index.root_of(source) == manifest_path(engine):
                return {item.path for item in reader.items(source.id)}
    return set()


def _listed(folder: Folder) -> set[str]:
    """Returns the file names in the manifest. Raises OSError, IndexDamagedError for a line that names none."""
    lines = folder.read(MANIFEST).splitlines(keepends=True) if folder.exists(MANIFEST) else []
    names = {_name_in(line) for line in lines if line.endswith(b"\n")}
    if "" in names:
        raise IndexDamagedError(f"{folder.path / MANIFEST} has a line without a path")
    return names


def _keep_lines(folder: Folder, wanted: Callable[[str], bool]) -> bytes | None:
    """Removes the lines of other uploads from the manifest, and one that was never completed; not damaged ones.

    Returns the former content if it had any such lines, else None. Raises UsageError, OSError.
    """
    before = folder.read(MANIFEST) if folder.exists(MANIFEST) else b""
    lines = before.splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n") and (not (name := _name_in(line)) or wanted(name))]
    if kept == lines:
        return None
    _write(folder, MANIFEST, b"".join(kept))
    return before


def _name_in(line: bytes) -> str:
    """Returns the file name in a line of the manifest; empty if there is none."""
    try:
        name = outside_json.parse(line)["path"]
    except (ValueError, TypeError, KeyError):
        return ""
    return name if isinstance(name, str) else ""


def _forget(folder: Folder, name: str) -> None:
    """Removes an upload from the manifest and deletes its file."""
    _keep_lines(folder, lambda each: each != name)
    folder.unlink(name)
