"""An open index: its folder, database, feature files and `meta.json`.

The folder is opened once, and all files are opened relative to it. An index that is removed, renamed or replaced while
it is open can still be read completely, and nothing is written to the index that replaced it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from simsearch.common.milvus_address import is_address
from simsearch.errors import IndexNotFoundError, IndexReplacedError, SimsearchError, UsageError
from simsearch.images.sources.remote.addresses import is_remote
from simsearch.images.sources.resolve import RecordedSource, Sources
from simsearch.models import registry
from simsearch.storage import roots as source_roots
from simsearch.storage.database import Database
from simsearch.storage.feature_files import FeatureFiles
from simsearch.storage.folder import Folder, error_for, identity_of
from simsearch.storage.lock import writer_lock
from simsearch.storage.meta import Meta
from simsearch.storage.protocols import OpenIndex
from simsearch.storage.reader import Reader, SourceRow

DATABASE = "items.sqlite"

Identity = tuple[int, ...]
"""The device and inode numbers of an index's folder, of its feature folder, and of its database."""

_FIXED = "created", "model", "weights_sha256", "recipe", "dimension", "rows_per_shard", "features", "descriptor"
"""The fields of `meta.json` that never change."""


class Index:
    """An open index. Thread-safe; each call of `reading` sees the latest commit of any process.

    path: the folder of the index.
    roots: a mapping from recorded to current locations, for the sources (folders, archives, tables) that have moved. If
    there is only one source, the key may be "".
    Raises IndexNotFoundError, IndexDamagedError, and UsageError for invalid roots.
    """

    def __init__(self, path: str | os.PathLike[str], *, roots: Mapping[str, str] | None = None) -> None:
        if is_address(path):
            raise UsageError(
                f"{os.fspath(path)} is not an index on disk",
                hint="give the folder of the index that was copied to this Milvus collection",
            )
        self.path, self.roots = Path(path), dict(roots or {})
        with contextlib.ExitStack() as opened:
            try:
                self.folder = Folder.at(self.path)
            except OSError as error:
                Meta.read(self.path)  # raises an error that tells the cause
                raise IndexNotFoundError(
                    f"the index {self.path} was replaced while it was opened", hint="try again"
                ) from error
            opened.callback(self.folder.close)
            self.meta = Meta.read(self.folder)
            read = self._meta_file()
            try:
                features = self.folder.child("features")
            except OSError as error:
                raise error_for(self.path / "features", error) from error
            shards = FeatureFiles(features, self.meta.dimension, self.meta.rows_per_shard)
            self.database = Database(self.path / DATABASE, shards=shards, folder=self.folder)
            opened.callback(self.database.close)
            self.identity: Identity = (*self.folder.identity, *features.identity, *self.database.identity)
            self.database.keep_readable()
            self._lock = threading.Lock()
            self._sources: tuple[int, Sources] = -1, Sources()
            self._counted: tuple[int, dict[int, int], dict[str, int]] = -1, {}, {}
            with self.reading() as reader:
                reader.state("rows")
                source_roots.check(self.roots, reader.sources())
            if self._meta_file() != read:  # updated meanwhile, or that of another index in this folder
                self._check_meta()
            opened.pop_all()

    def _meta_file(self) -> tuple[int, int] | None:
        """Returns values that change when `meta.json` is replaced; None if it is missing."""
        try:
            facts = self.folder.stat("meta.json")
        except OSError:
            return None
        return facts.st_ino, facts.st_mtime_ns

    def _check_meta(self) -> None:
        now = Meta.read(self.folder)
        if any(getattr(now, name) != getattr(self.meta, name) for name in _FIXED):
            raise IndexReplacedError(
                f"the index {self.path} was replaced while it was opened", hint="open the index again"
            )

    # -- opening and closing

    def __repr__(self) -> str:
        return f"<simsearch Index {str(self.path)!r}, model {self.meta.model}>"

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all files. The index cannot be used afterwards."""
        self.database.close()
        with self._lock:
            (_, sources), self._sources = self._sources, (-1, Sources())
        for source in sources.values():
            source.close()

    # -- reading

    def reading(self) -> contextlib.AbstractContextManager[Reader]:
        """Returns a context manager that yields a `Reader` on one snapshot of the database and of the feature files."""
        return self.database.reading()

    def __len__(self) -> int:
        """Returns the number of items."""
        with self.reading() as reader:
            return reader.count()

    @property
    def precision(self) -> str:
        """The number type in which all features of the index were computed: float32 or int8."""
        return registry.precision_of(self.meta.engine)

    @property
    def feature_files(self) -> FeatureFiles:
        """The feature files of the last commit. The files of a reader's snapshot are in `reader.shards`."""
        with self.reading() as reader:
            return reader.shards

    def root_of(self, row: SourceRow) -> str:
        """Returns the current location of a source; see `roots.location_of`."""
        return source_roots.location_of(row, self.roots, self.path)

    def sources(self, reader: Reader) -> Sources:
        """Returns the sources (folders, archives and the like) of the reader's snapshot; the keys are their numbers.

        Sources that are already open are reused.
        """
        generation = reader.state("generation")
        with self._lock:
            if self._sources[0] != generation:
                known = {(source.kind, source.root, source.outside): source for source in self._sources[1].values()}
                found = Sources()
                for row in reader.sources():
                    place = row.kind, self.root_of(row), row.options.get("outside") is True
                    found[row.id] = known.get(place) or RecordedSource(*place)
                self._sources = generation, found
            return self._sources[1]

    def info(self) -> dict[str, Any]:
        """Returns a description of the index that consists of plain JSON values."""
        with self.reading() as reader:
            opened = self.sources(reader)
            counts, labels = self._counts(reader)
            meta = self.meta
            return {
                "path": os.fspath(self.path),
                "items": reader.count(),
                "failures": reader.failure_count(),
                "labels": len(labels),
                "label_counts": dict(labels),
                "model": meta.model,
                "weights_sha256": meta.weights_sha256,
                "features": meta.features,
                "dimension": meta.dimension,
                "metric": meta.metric,
                "storage": meta.storage,
                "engine": meta.engine,
                "search": meta.search,
                "bytes": _size(self.folder.descriptor_path),
                "rows": reader.state("rows"),
                "recipe": meta.recipe,
                "created": meta.created,
                "format": meta.format,
                "sources": [
                    {"kind": row.kind, "root": opened[row.id].root, "items": counts.get(row.id, 0)}
                    for row in reader.sources()
                ],
            }

    def _counts(self, reader: Reader) -> tuple[dict[int, int], dict[str, int]]:
        """Returns the number of items of each source and of each label; counts again only if the index has changed."""
        generation = reader.state("generation")
        counted = self._counted
        if counted[0] != generation:
            counted = self._counted = generation, reader.count_by_source(), reader.value_counts("label")
        return counted[1:]

    # -- meta.json

    def refresh(self) -> None:
        """Reads `meta.json` again, since another process may have updated it.

        If this index was removed, or replaced by another index, the values read before are kept. Raises an error if
        this index is still at its path, but `meta.json` is missing or damaged.
        """
        try:
            meta = Meta.read(self.folder)
        except SimsearchError:
            if self.identity_now() == self.identity:
                raise
            return
        if all(getattr(meta, name) == getattr(self.meta, name) for name in _FIXED):
            self.meta = meta

    def write_meta(self, meta: Meta) -> None:
        """Replaces `meta.json` atomically and durably. The caller holds the writer lock.

        Raises IndexReplacedError if the open index is no longer at its path.
        """
        self.check_in_place()  # by now, the folder may contain another index
        meta.write(self.folder)
        self.meta = meta

    # -- writing

    def identity_now(self) -> Identity | None:
        """Returns the `Identity` (inode numbers) of the index now at the path; None if there is no complete index."""
        return identity_at(self.folder.place)

    def check_in_place(self) -> None:
        """Raises IndexReplacedError if the open index is no longer at its path."""
        if self.identity_now() != self.identity:
            raise IndexReplacedError(
                f"the index {self.path} was removed or replaced while it was open",
                hint="open the index again; nothing was written to the index that is there now",
            )

    @contextlib.contextmanager
    def writing(self, patience: float = 0.0) -> Iterator[None]:
        """Holds the writer lock during the block. The system releases the lock if the process dies.

        patience: seconds to wait for another writer.
        Raises IndexLockedError if another writer does not finish in time. Raises IndexReplacedError if this index is no
        longer at its path. This is checked before and after the block. If the first check fails, the block does not
        run. If only the second fails, the block has written to this index, and not to the index now at the path.
        """
        try:
            self.check_in_place()
            with writer_lock(self.folder, patience):
                self.check_in_place()
                yield
            self.check_in_place()
        except IndexReplacedError:
            raise
        except (SimsearchError, OSError):  # possibly because the index was removed
            self.check_in_place()
            raise

    def relocate(self, roots: Mapping[str, str]) -> None:
        """Records where the sources of the index are now; other processes will look for them there.

        roots: see the class. Raises UsageError for an unknown root.
        """
        with self.writing():
            with self.reading() as reader:
                known = reader.sources()
            source_roots.check(roots, known)
            for row in known:
                if root := roots.get(row.root, roots.get("")):
                    place = root if is_remote(root) else os.path.abspath(root)
                    self.database.relocate(row.id, place, self.path.absolute())


def on_disk(opened: OpenIndex) -> Index:
    """Returns `opened` if it is an index on disk. Raises UsageError for a Milvus collection."""
    if isinstance(opened, Index):
        return opened
    raise UsageError(
        f"{opened.path} is a Milvus collection, not an index on disk",
        hint="use the index on disk that was pushed to this collection; after a change, push again",
    )


def identity_at(path: str | os.PathLike[str]) -> Identity | None:
    """Returns the `Identity` (inode numbers) of the index at a path; None if there is no complete index."""
    place = os.fspath(path)  # called for each request of a service: strings are faster than pathlib
    folder, database = identity_of(place), identity_of(f"{place}/{DATABASE}")
    if (0, 0) in (folder, database, identity_of(f"{place}/meta.json")):
        return None
    return *folder, *identity_of(f"{place}/features"), *database


def _size(folder: Path) -> int:
    """Returns the total size in bytes of all files in a folder and its subfolders.

    Other processes may create and delete files meanwhile; a file deleted before its turn is not counted.
    """
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            facts = path.lstat()
            total += facts.st_size if stat.S_ISREG(facts.st_mode) else 0
    return total
