"""An open index: its folder, its database, its feature files, and what `meta.json` says of it.

All of it is opened once, relative to the folder that was at the path then. So an index that is removed, renamed or
replaced while it is open is still read whole, and nothing is ever written into the one that took its place.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simsearch.common.milvus_address import is_address
from simsearch.errors import IndexDamagedError, IndexReplacedError, SimsearchError, UsageError
from simsearch.images.sources.resolve import RecordedSource, Sources
from simsearch.models import registry
from simsearch.models.descriptors import REFERENCE
from simsearch.storage import components
from simsearch.storage import roots as source_roots
from simsearch.storage.database import Database
from simsearch.storage.feature_files import FeatureFiles
from simsearch.storage.folder import Folder, identity_of
from simsearch.storage.lock import writer_lock
from simsearch.storage.meta import Meta
from simsearch.storage.reader import Reader, SourceRow
from simsearch.version import __version__

if TYPE_CHECKING:
    from simsearch.models.base import Model

DATABASE = "items.sqlite"

WORK_FOLDER = "work"
"""In an index's `derived/`: the files of a build by a cluster."""

Identity = tuple[int, ...]
"""Device and inode of an index's folder, of its feature folder, and of its database."""

_FIXED = "created", "model", "weights_sha256", "recipe", "dimension", "rows_per_shard", "features", "descriptor"
"""The facts of `meta.json` that no writer changes."""


class Index:
    """An open index. Safe for many threads; what other processes commit is seen by the next `reading`.

    path: the folder. roots: where sources are now, by their recorded root; "" stands for the only one.
    Raises IndexNotFoundError, IndexDamagedError, UsageError.
    """

    def __init__(self, path: str | os.PathLike[str], *, roots: Mapping[str, str] | None = None) -> None:
        if is_address(path):
            raise UsageError(
                f"{os.fspath(path)} is no index on disk",
                hint="a collection is read by the verbs that search, and written by `push`",
            )
        self.path, self.roots = Path(path), dict(roots or {})
        with contextlib.ExitStack() as opened:
            try:
                self.folder = Folder.at(self.path)
            except OSError:
                Meta.read(self.path)  # which says what is the matter
                raise
            opened.callback(self.folder.close)
            self.meta = Meta.read(self.folder)
            read = self._meta_file()
            features = self.folder.child("features")
            shards = FeatureFiles(features, self.meta.dimension, self.meta.rows_per_shard)
            self.database = Database(self.path / DATABASE, shards=shards, folder=self.folder)
            opened.callback(self.database.close)
            self.identity: Identity = (*self.folder.identity, *features.identity, *self.database.identity)
            self.database.hold()
            self._lock = threading.Lock()
            self._sources: tuple[int, Sources] = -1, Sources()
            with self.reading() as reader:
                reader.state("rows")
                source_roots.check(self.roots, reader.sources())
            if self._meta_file() != read:  # brought up to date meanwhile, or that of another index in this very folder
                self._check_meta()
            opened.pop_all()

    def _meta_file(self) -> tuple[int, int] | None:
        """What tells one `meta.json` in the folder from the next."""
        try:
            facts = self.folder.stat("meta.json")
        except OSError:
            return None
        return facts.st_ino, facts.st_mtime_ns

    def _check_meta(self) -> None:
        now = Meta.read(self.folder)
        if any(getattr(now, name) != getattr(self.meta, name) for name in _FIXED):
            raise IndexReplacedError(f"the index {self.path} was replaced while it was opened", hint="open it again")

    # -- opening and closing

    def __repr__(self) -> str:
        return f"<simsearch Index {str(self.path)!r}, model {self.meta.model}>"

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of files. The index cannot be used afterwards."""
        self.database.close()
        with self._lock:
            (_, sources), self._sources = self._sources, (-1, Sources())
        for source in sources.values():
            source.close()

    # -- reading

    def reading(self) -> contextlib.AbstractContextManager[Reader]:
        """One snapshot of the database, and the feature files that belong to it."""
        return self.database.reading()

    def __len__(self) -> int:
        """The number of items."""
        with self.reading() as reader:
            return reader.count()

    @property
    def precision(self) -> str:
        """The arithmetic of the features, float32 or int8; the two are never mixed."""
        return registry.precision_of(self.meta.engine)

    @property
    def feature_files(self) -> FeatureFiles:
        """The feature files as last committed. Those that belong to a reader are `reader.shards`."""
        with self.reading() as reader:
            return reader.shards

    @property
    def derived(self) -> Path:
        """The folder of files that can be made again. A path for libraries, which leads to this index and no other."""
        return self.folder.through / "derived"

    def root_of(self, row: SourceRow) -> str:
        """Where a source is: as given by `roots`, where it was, or where it would be had it moved with the index."""
        return source_roots.of(row, self.roots, self.path)

    def sources(self, reader: Reader) -> Sources:
        """The index's sources by number, as of the reader's snapshot; containers that are open stay so."""
        generation = reader.state("generation")
        with self._lock:
            if self._sources[0] != generation:
                known = {(source.kind, source.root): source for source in self._sources[1].values()}
                found = Sources()
                for row in reader.sources():
                    place = row.kind, self.root_of(row)
                    found[row.id] = known.get(place) or RecordedSource(*place)
                self._sources = generation, found
            return self._sources[1]

    def info(self) -> dict[str, Any]:
        """What is in the index, as plain JSON values."""
        with self.reading() as reader:
            opened = self.sources(reader)
            counts = reader.counts()
            meta = self.meta
            return {
                "path": os.fspath(self.path),
                "items": reader.count(),
                "failures": reader.failure_count(),
                "labels": reader.label_count(),
                "model": meta.model,
                "weights_sha256": meta.weights_sha256,
                "features": meta.features,
                "dimension": meta.dimension,
                "metric": meta.metric,
                "storage": meta.storage,
                "engine": meta.engine,
                "search": meta.search,
                "bytes": _size(self.folder.through),
                "rows": reader.state("rows"),
                "recipe": meta.recipe,
                "created": meta.created,
                "format": meta.format,
                "sources": [
                    {"kind": row.kind, "root": opened[row.id].root, "items": counts.get(row.id, 0)}
                    for row in reader.sources()
                ],
            }

    # -- what `meta.json` says

    def refresh(self) -> None:
        """Reads `meta.json` again, which other processes bring up to date.

        That of another index, put into this one's folder, is not taken over; nor is it an error that there is none
        any more, where the index is no longer at its path.
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
        """Replaces `meta.json` in one durable step; for the holder of the writer lock. Raises IndexReplacedError."""
        self.check_in_place()  # another index may lie in this very folder
        meta.write(self.folder)
        self.meta = meta

    # -- writing

    def identity_now(self) -> Identity | None:
        """The identity of the index that is now at the path; None where there is none, or half of one."""
        return identity_at(self.folder.place)

    def check_in_place(self) -> None:
        """Raises IndexReplacedError if the index that is open is no longer the one at its path."""
        if self.identity_now() != self.identity:
            raise IndexReplacedError(
                f"the index {self.path} was removed or replaced while it was open, and was not changed",
                hint="open it again",
            )

    @contextlib.contextmanager
    def writing(self, patience: float = 0.0) -> Iterator[None]:
        """Holds the writer lock, which the system releases when the process dies.

        patience: seconds to wait for another writer. Raises IndexLockedError, and IndexReplacedError where the index
        is not, or at the end is no longer, the one at its path; then what was written went into the one that was open.
        """
        try:
            self.check_in_place()
            with writer_lock(self.folder, patience):
                self.check_in_place()
                yield
            self.check_in_place()
        except IndexReplacedError:
            raise
        except (SimsearchError, OSError):  # which may come from its having been taken away
            self.check_in_place()
            raise

    def relocate(self, roots: Mapping[str, str]) -> None:
        """Records where sources are now, for good; see `roots` of the class. Raises UsageError for an unknown one."""
        with self.writing():
            with self.reading() as reader:
                known = reader.sources()
            source_roots.check(roots, known)
            for row in known:
                if root := roots.get(row.root, roots.get("")):
                    self.database.relocate(row.id, os.path.abspath(root), self.path.absolute())


def identity_at(path: Path) -> Identity | None:
    """What tells the index at a path from any other; None where there is none, or half of one."""
    folder, database = identity_of(path), identity_of(path / DATABASE)
    if (0, 0) in (folder, database, identity_of(path / "meta.json")):
        return None
    return *folder, *identity_of(path / "features"), *database


def create(path: Path, model: Model, features: str = REFERENCE) -> bool:
    """Makes an empty index for a model; False if there is one already. A half-made one is completed.

    features: what the features are called, where the model is a `DescriptorModel` one.
    Raises UsageError if something else is at that place.
    """
    if path.exists() and (not path.is_dir() or any(not _ours(child.name) for child in path.iterdir())):
        if (path / "meta.json").exists():
            return False
        raise UsageError(f"{path} exists and is not an index", hint="name another place with -i/--index")
    try:
        path.mkdir(parents=True, exist_ok=True)
        folder = Folder.at(path)
        with writer_lock(folder):
            if folder.exists("meta.json"):
                return False
            if folder.exists(DATABASE) and _holds_items(path, folder):
                raise IndexDamagedError(f"{path / 'meta.json'} is missing, though the index has items")
            folder.child("features", create=True)
            Database(path / DATABASE, create=True, folder=folder).close()
            recipe = components.record(folder, model)
            Meta(
                features=features,
                descriptor=recipe,
                model=model.name,
                weights_sha256=model.weights_sha256,
                recipe=model.recipe.to_dict(),
                dimension=model.dimension,
                engine=model.engine,
                simsearch=__version__,
                created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                distances=list(model.distances),
            ).write(folder)
    except OSError as error:
        raise UsageError(f"the index {path} cannot be made: {error.strerror}") from error
    return True


def discard(index: Index) -> None:
    """Deletes an index that `create` has just made and that turned out to be a mistake; nothing else in its folder."""
    with writer_lock(index.folder):
        if len(index) or index.identity_now() != index.identity:  # used by another process, or replaced, meanwhile
            return
        index.close()
        for name in index.folder.names():
            if name == "meta.json" or _ours(name):
                index.folder.remove(name)
    if identity_of(index.path) == index.folder.identity:
        with contextlib.suppress(OSError):
            index.path.rmdir()


def _holds_items(path: Path, folder: Folder) -> bool:
    store = Database(path / DATABASE, folder=folder)
    try:
        with store.reading() as reader:
            return reader.count() > 0
    except IndexDamagedError:  # made half-way, without its tables
        return False
    finally:
        store.close()


def _ours(name: str) -> bool:
    known = {"features", "derived", "writer.lock", ".meta.json.partial"}
    return name in known | {components.FILE, f".{components.FILE}.partial"} or name.startswith(DATABASE)


def _size(folder: Path) -> int:
    """The bytes of all files in a folder; some may come and go meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total
