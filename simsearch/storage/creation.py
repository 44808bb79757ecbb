"""Creates an empty index, and deletes an index that is still empty."""

from __future__ import annotations

import contextlib
import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from simsearch.common.atomic_files import is_partial
from simsearch.errors import IndexDamagedError, UsageError
from simsearch.installation import __version__
from simsearch.models.descriptors import REFERENCE
from simsearch.storage import components
from simsearch.storage.database import Database
from simsearch.storage.folder import Folder, identity_of
from simsearch.storage.index import DATABASE, Index
from simsearch.storage.lock import writer_lock
from simsearch.storage.meta import Meta

if TYPE_CHECKING:
    from simsearch.models.base import Model


def create(path: Path, model: Model, features: str = REFERENCE) -> bool:
    """Creates an empty index for a model; returns False if there is an index at the path already.

    An index whose creation was interrupted is completed.
    features: the name of the features that the model computes; by default fc7, the features of the last hidden layer.
    Raises UsageError if there is something else at the path or the index cannot be written, IndexDamagedError if the
    index has items but no `meta.json`, and IndexLockedError if another process is writing to it.
    """
    if path.exists() and (not path.is_dir() or any(not _is_index_file(child.name) for child in path.iterdir())):
        if (path / "meta.json").exists():
            return False
        raise UsageError(
            f"{path} exists and is not an index",
            hint="give another path as index",
            shell_hint="give another path with -i/--index",
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        folder = Folder.at(path)
        with writer_lock(folder):
            if folder.exists("meta.json"):
                return False
            if folder.exists(DATABASE) and _holds_items(path, folder):
                raise IndexDamagedError(f"{path / 'meta.json'} is missing, but the index has items")
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
        raise UsageError(f"the index {path} cannot be created: {error.strerror}") from error
    return True


def discard(index: Index) -> None:
    """Deletes an index that `create` has just made; does nothing if it has items or was replaced by another index.

    Files in the folder that are not part of an index are kept.
    """
    with writer_lock(index.folder):
        if len(index) or index.identity_now() != index.identity:  # used by another process, or replaced, meanwhile
            return
        index.close()
        for name in index.folder.names():
            if name == "meta.json" or _is_index_file(name):
                index.folder.remove(name)
    if identity_of(index.path) == index.folder.identity:
        with contextlib.suppress(OSError):
            index.path.rmdir()


def _holds_items(path: Path, folder: Folder) -> bool:
    store = Database(path / DATABASE, folder=folder)
    try:
        with store.reading() as reader:
            return reader.count() > 0
    except IndexDamagedError:  # incomplete: it has no tables
        return False
    finally:
        store.close()


def _is_index_file(name: str) -> bool:
    known = {"features", "derived", "writer.lock", "ignored.json", components.FILE}
    known.add(".meta.json.partial")  # written by old versions
    return name in known or name.startswith(DATABASE) or is_partial(name)
