"""Bringing an index in step with its sources.

What each source lists is compared with what the index holds, by size and stamp; only what differs is read. Content is
known by its SHA-256: a file that was merely touched, renamed, moved or copied keeps the features it has. Work is
committed every few seconds, so an interrupted build continues where it was.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import simsearch
from simsearch import calibration, sources
from simsearch.errors import UsageError
from simsearch.extract import Extracted, Task, extract
from simsearch.meta import Meta, writer_lock
from simsearch.store import Changes, Item, SourceRow, Store, text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.engine import Engine
    from simsearch.models import Model

COMMIT_IMAGES = 256
COMMIT_SECONDS = 2.0
"""A commit follows after so many images or so many seconds, whichever comes first."""

SAMPLE = 512
"""Items whose pairwise distances calibrate `similarity`."""

Progress = Callable[[int, int], None]
"""Called with the number of images dealt with and their total."""


@dataclass(frozen=True)
class Options:
    """How to synchronise.

    exclude: globs over relative paths or names. labels: "auto" takes folder names if every image sits in a folder,
    "folder" wherever one does, "none" never. prune: remove items whose image is gone. batch_size, workers: None
    chooses for the machine. progress: see `Progress`.
    """

    exclude: tuple[str, ...] = ()
    labels: Literal["auto", "folder", "none"] = "auto"
    prune: bool = True
    dry_run: bool = False
    batch_size: int | None = None
    workers: int | None = None
    progress: Progress = lambda done, total: None


@dataclass
class Summary:
    """What a synchronisation did, in images. computed: how many went through the model.

    to_read: in a dry run, the images that are new or changed. unread: folders that could not be listed, with reasons.
    """

    items: int = 0
    added: int = 0
    updated: int = 0
    moved: int = 0
    unchanged: int = 0
    removed: int = 0
    failed: int = 0
    skipped: int = 0
    computed: int = 0
    to_read: int = 0
    seconds: float = 0.0
    unread: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class _Plan:
    """What differs between one source and the index."""

    row: SourceRow
    source: sources.Source
    fresh: list[tuple[sources.Entry, Item | None]] = field(default_factory=list)  # to read; the item known at its path
    relabelled: list[Item] = field(default_factory=list)
    missing: list[Item] = field(default_factory=list)  # whose image is gone, or has moved
    unreadable: list[sources.Entry] = field(default_factory=list)
    healed: list[str] = field(default_factory=list)  # failures whose file is gone


def create(path: Path, model: Model) -> bool:
    """Makes an empty index for a model; False if there is one already. A half-made one is completed.

    Raises UsageError if something else is at that place.
    """
    if path.exists() and (not path.is_dir() or any(not _ours(child) for child in path.iterdir())):
        if (path / "meta.json").exists():
            return False
        raise UsageError(f"{path} exists and is not an index", hint="name another place with -i/--index")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with writer_lock(path):
            if (path / "meta.json").exists():
                return False
            (path / "features").mkdir(exist_ok=True)
            Store(path / "items.sqlite", create=True).close()
            Meta(
                model=model.name, weights_sha256=model.weights_sha256, recipe=model.recipe.to_dict(),
                dimension=model.dimension, engine=model.engine, simsearch=simsearch.__version__,
                created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                distances=list(model.distances),
            ).write(path)  # fmt: skip
    except OSError as error:
        raise UsageError(f"the index {path} cannot be made: {error.strerror}") from error
    return True


def _ours(path: Path) -> bool:
    return path.name in {"features", "writer.lock", ".meta.json.partial"} or path.name.startswith("items.sqlite")


def sync(engine: Engine, found: Sequence[sources.Source], options: Options) -> Summary:
    """Synchronises the index with the given sources, or with all that it knows if none are given.

    Raises UsageError if a source is empty though the index has many items from it (a disk that is not mounted, say)
    and IndexLockedError if another process is writing.
    """
    start = time.monotonic()
    summary = Summary()
    with writer_lock(engine.path):
        plans = _plans(engine, found, options, summary)
        summary.to_read = sum(len(plan.fresh) for plan in plans)
        if options.dry_run:
            summary.removed = sum(len(plan.missing) for plan in plans) if options.prune else 0
            summary.failed = sum(len(plan.unreadable) for plan in plans)
            summary.items = len(engine)
        else:
            _Run(engine, plans, options, summary).finish()
    summary.seconds = time.monotonic() - start
    return summary


def remove(engine: Engine, items: Sequence[Item]) -> int:
    """Takes items out of the index."""
    with writer_lock(engine.path):
        engine.store.apply(Changes(deleted=[item.id for item in items]))
        refresh_meta(engine)
    return len(items)


def discard(path: Path) -> None:
    """Deletes an index that `create` has just made and that turned out to be a mistake; nothing else in its folder."""
    for child in sorted(path.iterdir()):
        if child.name == "meta.json" or _ours(child):
            shutil.rmtree(child) if child.is_dir() else child.unlink()
    with contextlib.suppress(OSError):
        path.rmdir()


# -- planning


def _plans(engine: Engine, found: Sequence[sources.Source], options: Options, summary: Summary) -> list[_Plan]:
    if found:
        pairs = [_register(engine, source, options) for source in found]
    else:
        with engine.store.reading() as reader:
            known = [(row, [item.path for item in reader.items(row.id)]) for row in reader.sources()]
        pairs = []
        for row, paths in known:
            source = sources.reopen(row.kind, engine.root_of(row))
            if isinstance(source, sources.FolderSource) and row.options.get("partial"):
                source.only = frozenset(paths)
            pairs.append((row, source))
    return [_compare(engine, row, source, options, summary) for row, source in pairs]


def _register(engine: Engine, source: sources.Source, options: Options) -> tuple[SourceRow, sources.Source]:
    """Finds the recorded source that holds `source`, or records it; a folder within a folder is part of its source."""
    settings: dict[str, Any] = {"exclude": list(options.exclude), "labels": options.labels}
    index = engine.path.absolute()
    if not isinstance(source, sources.FolderSource):
        return engine.store.add_source(source.kind, source.root, index, settings), source
    with engine.store.reading() as reader:
        known = [row for row in reader.sources() if row.kind == source.kind]
    for row in known:
        whole = source.root == row.root and not source.within
        if not whole and _below(source.root, row.root.rstrip("/")):
            within = os.path.normpath(os.path.join(os.path.relpath(source.root, row.root), source.within))
            return row, sources.FolderSource(row.root, within)
        if whole and not options.prune:
            return row, source  # added to, not described anew
    if source.within:
        settings["partial"] = True
    row = engine.store.add_source(source.kind, source.root, index, settings)
    for other in known:
        if not source.within and other.id != row.id and _below(other.root, source.root.rstrip("/")):
            engine.store.absorb(other.id, row.id, os.path.relpath(other.root, source.root))
    return row, source


def _compare(engine: Engine, row: SourceRow, source: sources.Source, options: Options, summary: Summary) -> _Plan:
    """Lists a source and finds what differs from the index."""
    plan = _Plan(row, source)
    listing = source.listing((*options.exclude, *row.options.get("exclude", ())))
    summary.skipped += listing.skipped
    summary.unread += [(source.display(path), reason) for path, reason in listing.unread]
    labels = _labels(source, listing.entries, row, options)
    within = source.within if isinstance(source, sources.FolderSource) else ""
    with engine.store.reading() as reader:
        held = {item.path: item for item in reader.items(row.id) if _below(item.path, within)}
        failed = {path for number, path, _ in reader.failures() if number == row.id and _below(path, within)}
    if held and not listing.entries and options.prune and not within:
        raise UsageError(
            f"{source.root} holds no images, but the index has {len(held)} from it",
            hint="is the disk mounted? `simsearch remove` takes them out, --no-prune keeps them",
        )
    for entry, label in zip(listing.entries, labels, strict=True):
        failed.discard(entry.path)
        item = held.get(entry.path)
        if entry.problem is not None:
            plan.unreadable.append(entry)
            if entry.problem != sources.GONE:  # it may be readable again tomorrow
                held.pop(entry.path, None)
            continue
        held.pop(entry.path, None)
        if item is None or (item.size, item.stamp) != (entry.size, entry.stamp):
            plan.fresh.append((replace(entry, label=label), item))
            continue
        summary.unchanged += 1
        if (item.label, item.metadata) != (label, entry.metadata or {}):
            plan.relabelled.append(replace(item, label=label, metadata=entry.metadata or {}))
    unread = [path for path, _ in listing.unread]
    plan.missing = [item for path, item in held.items() if not any(_below(path, folder) for folder in unread)]
    plan.healed = sorted(failed)
    return plan


def _labels(
    source: sources.Source, entries: Sequence[sources.Entry], row: SourceRow, options: Options
) -> list[str | None]:
    """The label of each entry, by the rule asked for or else by that recorded for the source."""
    rule = options.labels if options.labels != "auto" else row.options.get("labels", "auto")
    if rule == "none":
        return [None] * len(entries)
    if source.labelled:
        return [entry.label for entry in entries]
    return [None if label is None else text(label) for label in sources.folder_labels(entries, rule == "folder")]


def _below(path: str, folder: str) -> bool:
    return not folder or path == folder or path.startswith(folder + "/")


# -- running


class _Run:
    """The changing half of a synchronisation. Results gather in `pending` until they are committed."""

    def __init__(self, engine: Engine, plans: Sequence[_Plan], options: Options, summary: Summary) -> None:
        self.engine, self.plans, self.options, self.summary = engine, plans, options, summary
        self.pending = Changes()
        self.features: list[NDArray[np.float16]] = []
        with engine.store.reading() as reader:
            self.row = reader.state("rows")
            self.known = reader.contents()
        self.missing: dict[bytes, list[Item]] = {}
        for plan in plans:
            for item in plan.missing:
                self.missing.setdefault(item.digest, []).append(item)
        self.committed = time.monotonic()

    def finish(self) -> None:
        """Does it all; on Ctrl-C, what is finished is committed before the exception goes on."""
        try:
            for plan in self.plans:
                self._settle(plan)
            self._extract()
            if self.options.prune:
                gone = [item.id for items in self.missing.values() for item in items]
                self.pending.deleted += gone
                self.summary.removed += len(gone)
        finally:
            self._commit()
            refresh_meta(self.engine)
        self.summary.items = len(self.engine)

    def _settle(self, plan: _Plan) -> None:
        """What needs no reading."""
        self.pending.updated += plan.relabelled
        self.pending.cleared += [(plan.row.id, path) for path in plan.healed]
        for entry in plan.unreadable:
            self._fail(plan, entry, entry.problem or "unreadable")

    def _extract(self) -> None:
        total = sum(len(plan.fresh) for plan in self.plans)
        if not total:
            return
        model = self.engine.load_model(expected=total)
        size = self.options.batch_size or (256 if "cuda" in model.engine else 32)
        tasks = (
            Task(functools.partial(plan.source.read, entry.path), (plan, entry, item))
            for plan in self.plans
            for entry, item in plan.fresh
        )
        done = 0
        self.options.progress(0, total)
        groups = extract(model, tasks, known=self.known, batch_size=size, workers=self.options.workers)
        for group in groups:
            for (plan, entry, item), result in group:
                self._settle_image(plan, entry, item, result)
            done += len(group)
            if len(self.features) >= COMMIT_IMAGES or time.monotonic() - self.committed > COMMIT_SECONDS:
                self._commit()
            self.options.progress(done, total)

    def _settle_image(self, plan: _Plan, entry: sources.Entry, item: Item | None, result: Extracted) -> None:
        """Turns one result into a change of the index. item: what is known at that path."""
        if result.problem is not None:
            self._fail(plan, entry, result.problem)
            if item is not None and result.digest:  # it was read, and is no image any more
                self.pending.deleted.append(item.id)
                self.summary.removed += 1
            return
        self.pending.cleared.append((plan.row.id, entry.path))
        new = Item(
            0, plan.row.id, entry.path, entry.label, entry.metadata or {}, result.digest, entry.size, entry.stamp,
            result.width, result.height, -1,
        )  # fmt: skip
        if item is not None and item.digest == result.digest:
            self.summary.unchanged += 1
            self._keep(new, item)
        elif item is not None:
            self.summary.updated += 1
            self.pending.updated.append(replace(self._place(new, result), id=item.id))
        elif candidates := self.missing.get(result.digest):
            self.summary.moved += 1
            self._keep(new, candidates.pop())
        else:
            self.summary.added += 1
            self.pending.inserted.append(self._place(new, result))

    def _keep(self, new: Item, old: Item) -> None:
        """The same content elsewhere or later: everything but path, stamp and label stays."""
        kept = replace(new, id=old.id, row=old.row, width=old.width, height=old.height)
        self.pending.updated.append(kept)

    def _place(self, new: Item, result: Extracted) -> Item:
        """Puts features into the next row: computed ones, or a copy of those that the same content has."""
        row = self.row + len(self.features)
        if result.features is not None:
            self.summary.computed += 1
            self.features.append(result.features)
            self.known.setdefault(result.digest, (row, result.width, result.height))
            return replace(new, row=row)
        source, width, height = self.known[result.digest]
        if source >= self.row:
            self.features.append(self.features[source - self.row])
        else:
            self.features.append(self.engine.shards.read(np.array([source], np.int64))[0])
        return replace(new, row=row, width=width, height=height)

    def _fail(self, plan: _Plan, entry: sources.Entry, reason: str) -> None:
        self.pending.failed.append((plan.row.id, entry.path, reason))
        self.summary.failed += 1

    def _commit(self) -> None:
        """Writes the features, then commits the items that own them."""
        if self.features:
            checksum = self.engine.shards.write(self.row, np.stack(self.features))
            self.pending.blocks.append((self.row, len(self.features), checksum))
        if self.pending:
            self.engine.store.apply(self.pending)
        self.row += len(self.features)
        self.pending, self.features = Changes(), []
        self.committed = time.monotonic()


def refresh_meta(engine: Engine) -> None:
    """Brings `meta.json` up to date with what is committed."""
    with engine.store.reading() as reader:
        generation, items, rows = reader.state("generation"), reader.count(), reader.state("rows")
        failures = reader.failure_count()
        meta = engine.meta
        if (meta.generation, meta.items) == (generation, items):
            return
        distances, measured = meta.distances, meta.distances_of
        grown = not 0.8 * measured <= items <= 1.25 * measured
        if items >= 2 and grown and (items >= calibration.ENOUGH or not distances or measured):
            live = reader.rows()
            sample = np.random.default_rng(0).choice(live, min(SAMPLE, len(live)), replace=False)
            distances, measured = list(calibration.quantiles(engine.shards.read(np.sort(sample)))), items
    engine.meta = replace(
        meta, generation=generation, items=items, rows=rows, failures=failures, distances=distances,
        distances_of=measured, engine=engine.engine_used or meta.engine,
    )  # fmt: skip
    engine.meta.write(engine.path)
