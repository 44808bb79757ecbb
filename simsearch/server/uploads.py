"""Images that came over HTTP: kept in `uploads/` inside the index, named by a manifest that is one of its sources."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simsearch.common.atomic_files import atomic_write
from simsearch.engine import Engine
from simsearch.errors import SimsearchError, UsageError
from simsearch.images import decode
from simsearch.images.sources.tables import ManifestSource
from simsearch.indexing import options, sync


class Uploads:
    """Adds and removes; one at a time, since an index has one writer, also among processes.

    An upload appends its row to the manifest and looks at no other, so it takes as long however many there are.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def add(self, engine: Engine, query: dict[str, Any], largest: int) -> tuple[int, bool]:
        """The id of the image's item, and whether it is new. Raises SimsearchError."""
        data: bytes = query["image"]
        decode.decode_image(data, engine.recipe.resize, largest)
        name = hashlib.sha256(data).hexdigest()
        folder = engine.path / "uploads"
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot write {folder}: {error.strerror}") from error
        with self._alone(folder):
            if found := _find(engine, name):
                return found, False
            if (folder / name).exists():  # left by a process that died
                _forget(folder, name)
            atomic_write(folder / name, data)
            line = json.dumps({**query.get("metadata", {}), "path": name, "label": query.get("label")})
            try:
                _append(folder / "items.jsonl", line)
                sync.sync(engine, [ManifestSource(_manifest(engine), name, line)], options.BuildOptions(prune=False))
            finally:  # what was refused must not come back with the next build
                found = _find(engine, name)
                if found is None:
                    _forget(folder, name)
            if found is None:
                raise SimsearchError("the image could not be indexed")
            return found, True

    def remove(self, engine: Engine, number: int) -> None:
        """Takes an item out of the index; its file too, if it came over HTTP. Raises ItemNotFoundError."""
        folder = engine.path / "uploads"
        with self._alone(folder) if folder.is_dir() else self._lock:
            path = engine.paths([engine.item(number)])[0]
            engine.remove(number)
            name = path.rpartition("/")[2]
            if path == str((folder / name).absolute()):
                _forget(folder, name)

    @contextlib.contextmanager
    def _alone(self, folder: Path) -> Iterator[None]:
        """Keeps other threads and processes out of the folder."""
        with self._lock:
            descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)


def _manifest(engine: Engine) -> str:
    return str((engine.path / "uploads" / "items.jsonl").absolute())


def _find(engine: Engine, name: str) -> int | None:
    """The id of an upload's item."""
    with engine.store.reading() as reader:
        for source in reader.sources():
            if source.kind == ManifestSource.kind and engine.root_of(source) == _manifest(engine):
                return next((item.id for item in reader.items(source.id, name)), None)
    return None


def _append(path: Path, line: str) -> None:
    """Adds a line to the manifest, durably, after what a crash may have left of one."""
    try:
        with path.open("a+b") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            if end and file.read() != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def _forget(folder: Path, name: str) -> None:
    """Takes an upload out of the manifest, and deletes its file."""
    path = folder / "items.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if line.endswith(b"\n") and json.loads(line)["path"] != name]
    if kept != lines:
        atomic_write(path, b"".join(kept))
    (folder / name).unlink(missing_ok=True)
