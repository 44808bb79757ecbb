"""Adds and removes images over HTTP.

Added images are files in the folder `uploads/` inside the index. A manifest lists these files. The manifest is
recorded in the index as a source: a place from which builds read images, such as a folder or an archive.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from simsearch.common.machine import MemoryBudget
from simsearch.engine import Engine
from simsearch.errors import IndexDamagedError, SimsearchError, UsageError
from simsearch.images import decode, memory
from simsearch.images.sources.tables import ManifestSource
from simsearch.indexing import options, sync, upload_folder
from simsearch.server.reloading import ReloadableIndex
from simsearch.storage.folder import Folder


class Uploads:
    """Adds and removes items, one at a time, since only one thread of one process may write to an index.

    The first upload of a process reads the whole manifest. Later uploads of new images only append a line to it, so
    their time does not depend on the number of lines.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._swept: set[tuple[int, int]] = set()

    def add(self, engine: Engine, query: dict[str, Any], largest: int, budget: MemoryBudget) -> tuple[int, bool]:
        """Adds an image; returns its item's id, and True if the item is new. Raises SimsearchError.

        If the image was uploaded before, its label and metadata stay as they are, and those in `query` are ignored.
        query: `image` (bytes), and optionally `label` and `metadata`.
        largest: the maximum number of pixels of the image. budget: memory for decoding.
        """
        data: bytes = query["image"]
        with budget.hold(memory.peak_memory(data, engine.recipe.resize)):
            decode.decode_image(data, engine.recipe.resize, largest)
            return self._add(engine, query, data)

    def _add(self, engine: Engine, query: dict[str, Any], data: bytes) -> tuple[int, bool]:
        name = hashlib.sha256(data).hexdigest()
        engine.index.check_in_place()
        folder = upload_folder.open_folder(engine.index, create=True)
        with _writes(folder), self._alone(folder):
            self._sweep_once(engine, folder)
            if found := _find(engine, name):
                self._list_again(engine, folder, found, data)
                return found, False
            if folder.exists(name):  # left by a process that died
                _forget(folder, name)
            folder.write(name, data)
            line = _line(name, query.get("label"), query.get("metadata", {}))
            try:
                upload_folder.append_line(folder, line)
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

    def _list_again(self, engine: Engine, folder: Folder, number: int, data: bytes) -> None:
        """Writes the file of a picture and its line in the manifest, if they are missing but the index has the item.

        This happens if a removal was interrupted after it deleted the line. Without the line, the next build would
        remove the item, although the picture has now been uploaded again.
        number: the id of the item. data: the bytes of the picture.
        """
        item = engine.item(number)
        if not folder.exists(item.path):
            folder.write(item.path, data)
        with contextlib.suppress(IndexDamagedError):
            if item.path not in upload_folder.listed(folder):
                upload_folder.append_line(folder, _line(item.path, item.label, item.metadata))

    def sweep(self, indexes: Iterable[ReloadableIndex]) -> None:
        """Deletes the files that interrupted processes left in `uploads/`, in each of the indexes. Ignores errors.

        These are incomplete files, and pictures that have neither an item nor a line in the manifest.
        """
        for served in indexes:
            with contextlib.suppress(SimsearchError, OSError):
                served.run_once(self._sweep)

    def _sweep(self, engine: Engine) -> None:
        folder = upload_folder.open_folder(engine.index)
        if folder.identity != (0, 0):
            with self._alone(folder):
                self._sweep_once(engine, folder)

    def _sweep_once(self, engine: Engine, folder: Folder) -> None:
        """Does what `sweep` does, for one folder `uploads/`; later calls of this process for this folder do nothing."""
        if folder.identity not in self._swept:
            self._swept.add(folder.identity)
            with contextlib.suppress(SimsearchError, OSError):  # the next process tries again
                upload_folder.sweep(engine.index, folder)

    def remove(self, engine: Engine, number: int) -> None:
        """Removes the item with the id `number`, and its file if it was added over HTTP. Raises ItemNotFoundError.

        The line of the manifest is removed before the item: if the process dies in between, the next build removes the
        item. In the other order, the next build would add the picture again.
        """
        folder = upload_folder.open_folder(engine.index)
        with _writes(folder), self._alone(folder) if folder.identity != (0, 0) else self._lock:
            path = engine.paths([engine.item(number)])[0]
            name = path.rpartition("/")[2]
            if path != str(folder.place / name):
                engine.remove(number)
                return
            self._sweep_once(engine, folder)
            before = upload_folder.keep_lines(folder, lambda each: each != name)
            try:
                engine.remove(number)
            except BaseException:
                if before is not None:
                    folder.write(upload_folder.MANIFEST, before)
                raise
            with contextlib.suppress(OSError):  # the next sweep removes it
                folder.unlink(name)

    @contextlib.contextmanager
    def _alone(self, folder: Folder) -> Iterator[None]:
        """In the `with` block, keeps other threads and processes out of the folder."""
        with self._lock, upload_folder.locked(folder):
            yield


def _line(name: str, label: str | None, metadata: dict[str, Any]) -> str:
    """Returns the line that lists a picture in the manifest: a JSON object. name: the name of the picture's file."""
    return json.dumps({**metadata, "path": name, "label": label})


def _find(engine: Engine, name: str) -> int | None:
    """Returns the id of the item for an uploaded file; None if there is none. name: the name of the file."""
    with engine.index.reading() as reader:
        for source in reader.sources():
            if source.kind == ManifestSource.kind and engine.index.root_of(source) == manifest_path(engine):
                return next((item.id for item in reader.items(source.id, name)), None)
    return None


def manifest_path(engine: Engine) -> str:
    """Returns the path of the manifest of uploads. The index has recorded it as the root (location) of a source."""
    return upload_folder.manifest_path(engine.index)


def _forget(folder: Folder, name: str) -> None:
    """Removes an uploaded picture from the manifest, and deletes its file."""
    upload_folder.keep_lines(folder, lambda each: each != name)
    folder.unlink(name)


@contextlib.contextmanager
def _writes(folder: Folder) -> Iterator[None]:
    """In the `with` block, turns an OSError into a UsageError.

    A SimsearchError is not changed, even one that is also an OSError, such as IndexNotFoundError.
    """
    try:
        yield
    except SimsearchError:
        raise
    except OSError as error:
        raise UsageError(f"cannot write {folder.path}: {error.strerror}") from error
