"""Opening and building indexes: `simsearch.open` and `simsearch.build`."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from simsearch.common.keywords import check_keywords
from simsearch.common.lazy import LazyModule
from simsearch.common.milvus_address import is_address
from simsearch.engine import Engine
from simsearch.errors import UnavailableError, UsageError
from simsearch.images.sources import resolve
from simsearch.models import descriptors, load, registry
from simsearch.storage.creation import create, discard
from simsearch.storage.meta import Meta

if TYPE_CHECKING:
    from simsearch.cluster.milvus import index as milvus_index
    from simsearch.images.sources.base import Source
    from simsearch.indexing import learn_components, sync
    from simsearch.indexing import options as indexing_options
    from simsearch.models.base import Model
else:  # imported on first use: a search does not need these modules
    indexing_options = LazyModule("simsearch.indexing.options")
    learn_components = LazyModule("simsearch.indexing.learn_components")
    sync = LazyModule("simsearch.indexing.sync")
    milvus_index = LazyModule("simsearch.cluster.milvus.index")

DEFAULT_INDEX = "indexes/default"

SourceName = str | os.PathLike[str]
"""A path, an address such as s3://BUCKET/FOLDER, or `torchvision/NAME`; see `resolve.resolve`."""


@check_keywords
def open(
    index: str | os.PathLike[str],
    *,
    model: str | Model | None = None,
    device: str = "auto",
    roots: Mapping[str, str] | None = None,
) -> Engine:
    """Opens an index for searching and changing.

    index: the folder of an index, or the address of a Milvus collection (see `simsearch.common.milvus_address`). A
    collection can only be searched, not changed.
    model, device, roots: see `Engine`.
    Raises UsageError and the errors of `Engine`; for a collection, also UnavailableError and MissingExtraError.
    """
    index = _place(index)
    if roots is not None and not isinstance(roots, Mapping):
        raise UsageError(f"roots is {roots!r}, not a mapping", hint='{"/recorded/folder": "/present/folder"}')
    if is_address(index):
        return milvus_index.open_collection(os.fspath(index), model=model, device=device, roots=roots)
    return Engine(index, model=model, device=device, roots=roots)


def build(
    source: SourceName | Sequence[SourceName],
    index: str | os.PathLike[str] = DEFAULT_INDEX,
    model: str | Model | None = None,
    *,
    device: str = "auto",
    features: str | None = None,
    **options: Unpack[indexing_options.BuildKeywords],
) -> Engine:
    """Makes or updates an index from one or more sources, and returns the open index.

    source: one or more folders, archives, manifests (.csv or .jsonl lists of images), Parquet files or
    `torchvision/NAME`; see `resolve.resolve`.
    model: the model of a new index. For an existing index, it must be the model that the index was built with.
    device: see `Engine`.
    features: the features of a new index. They are given as a name in `descriptors.DESCRIPTORS`, or as the path of
    another index, whose features and learned principal components are then used. By default, the 4096 activations of
    the layer fc7. For an existing index, they must be the features that it was built with.
    options: the fields of `simsearch.indexing.options.BuildOptions`, as keyword arguments.
    Raises UsageError, ModelMismatchError, IndexDamagedError, IndexLockedError.
    """
    names = resolve.as_names(source)
    chosen = indexing_options.BuildOptions.from_keywords(options)
    if chosen.dry_run:
        raise UsageError("a build that returns an index cannot be a dry run", hint="use simsearch.api.plan")
    engine, _ = build_with_summary(names, index, model, device=device, options=chosen, features=features)
    return engine


def build_with_summary(
    names: Sequence[SourceName],
    index: str | os.PathLike[str],
    model: str | Model | None,
    *,
    device: str,
    options: indexing_options.BuildOptions,
    roots: Mapping[str, str] | None = None,
    features: str | None = None,
) -> tuple[Engine, indexing_options.Summary]:
    """Builds like `build`, and returns the open index and a summary of the changes. Raises the same errors.

    names: the sources. If there are none, all sources recorded in the index are updated.
    roots: the current locations of sources that have moved (see `Engine`). They are recorded in the index.
    """
    _on_disk(index)
    found = [resolve.resolve(os.fspath(name)) for name in names]
    path = Path(index)
    fresh = False
    if not (path / "meta.json").exists():
        if not names:
            raise UsageError(f"there is no index at {path} to update", hint="name a SOURCE to build it from")
        model, name = _described(_loaded(model, device), features, found, options, device)
        fresh = create(path, model, name)
    engine = Engine(path, model=model, device=device)
    try:
        _check_features(engine, features)
        if roots:
            engine.relocate(roots)
        return engine, sync.sync(engine.index, engine.model, found, options)
    except (UsageError, UnavailableError):
        if fresh:
            discard(engine.index)
        engine.close()
        raise


@contextlib.contextmanager
def comparable(place: str | os.PathLike[str], engine: Engine) -> Iterator[Engine]:
    """Yields an open index to compare `engine` with.

    place: the path or address of an index, or a source as in `build`. From a source, a temporary index is built with
    the model and the features of `engine`; it is deleted at the end of the block.
    Raises UsageError, IndexDamagedError, ModelMismatchError.
    """
    name = resolve.as_names(place)[0]
    if is_address(name) or (Path(name) / "meta.json").exists():
        with open(name, model=None, device=engine.device) as other:
            yield other
        return
    source = resolve.resolve(os.fspath(name))
    with tempfile.TemporaryDirectory(prefix="simsearch-") as folder:
        model = engine.load_model(threads=True)
        create(Path(folder), model, engine.meta.features)
        with Engine(folder, model=model, device=engine.device) as other:
            sync.sync(other.index, other.model, [source], indexing_options.BuildOptions())
            yield other


def plan(
    names: Sequence[SourceName],
    index: str | os.PathLike[str],
    model: str | Model | None,
    options: indexing_options.BuildOptions,
    features: str | None = None,
) -> indexing_options.Summary:
    """Returns a summary of the changes that `build` would make, without making them. Raises the errors of `build`.

    The arguments are those of `build_with_summary`.
    """
    _on_disk(index)
    found = [resolve.resolve(os.fspath(name)) for name in names]
    options = replace(options, dry_run=True)
    if (Path(index) / "meta.json").exists():
        with Engine(index, model=model) as engine:
            _check_features(engine, features)
            return sync.sync(engine.index, engine.model, found, options)
    if features is not None and not _is_index(features):
        descriptors.find(features)
    with tempfile.TemporaryDirectory() as folder:
        model = _loaded(model, "cpu")
        create(Path(folder), model)
        with Engine(folder, model=model) as engine:
            return sync.sync(engine.index, engine.model, found, options)


def _on_disk(index: str | os.PathLike[str]) -> None:
    if is_address(_place(index)):
        raise UsageError(
            f"an index cannot be built at {os.fspath(index)}",
            hint="build an index on disk, then push it: simsearch.cluster.milvus.push.push(index, ADDRESS)",
            shell_hint="build an index on disk, then `simsearch push` it",
        )


def _place(index: str | os.PathLike[str]) -> str:
    """Returns the path or address of an index. Raises UsageError for several indexes, and for an impossible path."""
    names = resolve.as_names(index)
    if len(names) != 1:
        raise UsageError(f"{index!r} is not the path of an index")
    try:
        os.stat(names[0])
    except ValueError as error:  # NUL, or characters that no file name can hold
        raise UsageError(f"no index can be at {names[0]!r}") from error
    except OSError as error:
        if error.errno in {errno.ENAMETOOLONG, errno.ELOOP}:
            raise UsageError(f"no index can be at {names[0]}: {error.strerror}") from error
    return names[0]


def _loaded(model: str | Model | None, device: str) -> Model:
    """Returns a loaded model for a new index.

    The precision of this model, float32 or int8, is recorded in the index, so that later builds use the same precision.
    model: a loaded model, the name or path of a model to load, or None for the default model.
    """
    given = model or registry.DEFAULT
    return load.load_model(given, device, threads=True, precision="auto") if isinstance(given, str) else given


def _described(
    model: Model, features: str | None, found: Sequence[Source], options: indexing_options.BuildOptions, device: str
) -> tuple[Model, str]:
    """Returns the model that computes the features of a new index, and the name of these features.

    model: the network. It is returned unchanged for the features fc7. For other features, the result wraps it.
    features: as in `build`: the name of a descriptor, or the path of another index, to use the features of that index
    with its principal components.
    found: the sources of the new index. If the descriptor needs principal components, they are learned from the images
    of these sources, except the images that `options.exclude` matches.
    device: the device for the model of the other index, if `features` is the path of an index.
    """
    name = features or descriptors.REFERENCE
    if _is_index(name):
        with Engine(name, model=model, device=device) as other:
            return other.load_model(), other.meta.features
    recipe = descriptors.find(name)
    if recipe is None:
        return model, name
    if not recipe.dimension:
        return descriptors.DescriptorModel(model, recipe), name
    learned = learn_components.learn_components(model, recipe, found, options.exclude, options.progress)
    return descriptors.DescriptorModel(model, recipe, learned), name


def _is_index(features: str) -> bool:
    """Returns True if `features` is the path of an index, and not the name of a descriptor such as fc7.

    An index whose path is the name of a descriptor can be given as ./NAME.
    """
    recipes = {descriptors.REFERENCE, *descriptors.DESCRIPTORS}
    return features not in recipes and (Path(features) / "meta.json").exists()


def _check_features(engine: Engine, features: str | None) -> None:
    """Raises UsageError if `features` is given but does not name the features of the index.

    features: as in `build`.
    """
    if features is None or features == engine.meta.features:
        return
    ours = engine.meta.descriptor
    if _is_index(features) and Meta.read(Path(features)).descriptor == ours:
        return
    raise UsageError(
        f"the index {engine.path} has features {engine.meta.features}, not {features}",
        hint="leave features out, or build another index",
        shell_hint="leave --features out, or build another index",
    )
