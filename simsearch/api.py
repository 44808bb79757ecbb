"""`simsearch.open` and `simsearch.build`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simsearch import models, opening, sync
from simsearch.addresses import is_address
from simsearch.engine import Engine
from simsearch.errors import UsageError

if TYPE_CHECKING:
    from simsearch.models import Model

DEFAULT_INDEX = "indexes/default"

SourceName = str | os.PathLike[str]


def open(
    index: str | os.PathLike[str],
    *,
    model: str | Model | None = None,
    device: str = "auto",
    roots: Mapping[str, str] | None = None,
) -> Engine:
    """Opens an index for searching and changing; see `Engine` for the arguments.

    index: a folder, or the address of a collection in Milvus (see `addresses`), which can only be searched.
    """
    if is_address(index):
        from simsearch.milvus import MilvusEngine

        return MilvusEngine(os.fspath(index), model=model, device=device, roots=roots)
    return Engine(index, model=model, device=device, roots=roots)


def build(
    source: SourceName | Sequence[SourceName],
    index: str | os.PathLike[str] = DEFAULT_INDEX,
    model: str | Model | None = None,
    *,
    device: str = "auto",
    **options: Any,
) -> Engine:
    """Makes an index from one or more sources, or brings it in step with them, and opens it.

    source: folders, archives, manifests, Parquet files, `torchvision/NAME`; see `opening.resolve`.
    model: for a new index the default model unless given; an existing one keeps its own, and another is refused.
    options: the fields of `sync.Options`.
    """
    names = [source] if isinstance(source, str | os.PathLike) else list(source)
    chosen = sync.Options(**options)
    if chosen.dry_run:
        raise UsageError("a dry run builds no index that could be opened", hint="see simsearch.api.plan")
    engine, _ = build_with_summary(names, index, model, device=device, options=chosen)
    return engine


def build_with_summary(
    names: Sequence[SourceName],
    index: str | os.PathLike[str],
    model: str | Model | None,
    *,
    device: str,
    options: sync.Options,
    roots: Mapping[str, str] | None = None,
) -> tuple[Engine, sync.Summary]:
    """`build`, and what it did. Without names, all sources that the index knows are brought up to date.

    roots: where recorded sources are now (see `Engine`); recorded for good.
    """
    _on_disk(index)
    found = [opening.resolve(os.fspath(name)) for name in names]
    path = Path(index)
    fresh = False
    if not (path / "meta.json").exists():
        if not names:
            raise UsageError(f"there is no index at {path} to bring up to date", hint="name a SOURCE to build it from")
        model = _loaded(model, device)
        fresh = sync.create(path, model)
    engine = Engine(path, model=model, device=device)
    try:
        if roots:
            engine.relocate(roots)
        return engine, sync.sync(engine, found, options)
    except UsageError:
        engine.close()
        if fresh:
            sync.discard(path)
        raise


def plan(
    names: Sequence[SourceName], index: str | os.PathLike[str], model: str | Model | None, options: sync.Options
) -> sync.Summary:
    """What `build` would do, without doing it."""
    _on_disk(index)
    found = [opening.resolve(os.fspath(name)) for name in names]
    options = replace(options, dry_run=True)
    if (Path(index) / "meta.json").exists():
        with Engine(index, model=model) as engine:
            return sync.sync(engine, found, options)
    with tempfile.TemporaryDirectory() as folder:
        model = _loaded(model, "cpu")
        sync.create(Path(folder), model)
        with Engine(folder, model=model) as engine:
            return sync.sync(engine, found, options)


def _on_disk(index: str | os.PathLike[str]) -> None:
    if is_address(index):
        raise UsageError(f"{os.fspath(index)} is no place for an index to be built in",
                         hint="build it on disk, then `simsearch push` it there")  # fmt: skip


def _loaded(model: str | Model | None, device: str) -> Model:
    return models.load(model or models.DEFAULT, device) if model is None or isinstance(model, str) else model
