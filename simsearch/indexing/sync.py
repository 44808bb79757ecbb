"""Bringing an index in step with its sources.

Only what `simsearch.indexing.plan` found to differ is read. Content is known by its SHA-256: a file that was merely touched,
renamed, moved or copied keeps the features it has. Work is committed every few seconds, so an interrupted build
continues where it was.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import simsearch
from simsearch.errors import IndexDamagedError, UsageError
from simsearch.indexing import ann_maintenance
from simsearch.indexing import plan as indexing_plan
from simsearch.indexing.extract import Task, extract, usual_batch
from simsearch.indexing.known_files import KnownFiles
from simsearch.indexing.load import LoadedImage, reading
from simsearch.indexing.options import BuildOptions as Options
from simsearch.indexing.options import Summary
from simsearch.indexing.plan import Plan, PlannedSource
from simsearch.models.descriptors import REFERENCE
from simsearch.search import similarity
from simsearch.storage import components
from simsearch.storage.components import FILE
from simsearch.storage.database import Changes, Database
from simsearch.storage.lock import writer_lock
from simsearch.storage.meta import Meta
from simsearch.storage.reader import Item

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.engine import Engine
    from simsearch.images.sources.base import Entry, Source
    from simsearch.models.base import Model

COMMIT_IMAGES = 256
COMMIT_SECONDS = 2.0
"""A commit follows after so many images or so many seconds, whichever comes first."""

SAMPLE = 512
"""Items whose pairwise distances calibrate `similarity`."""


def create(path: Path, model: Model, features: str = REFERENCE) -> bool:
    """Makes an empty index for a model; False if there is one already. A half-made one is completed.

    features: what the features are called, where the model is a `DescriptorModel` one.
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
            if (path / "items.sqlite").exists() and _holds_items(path / "items.sqlite"):
                raise IndexDamagedError(f"{path / 'meta.json'} is missing, though the index has items")
            (path / "features").mkdir(exist_ok=True)
            Database(path / "items.sqlite", create=True).close()
            recipe = components.descriptor_record(path, model)
            Meta(
                features=features, descriptor=recipe, model=model.name,
                weights_sha256=model.weights_sha256, recipe=model.recipe.to_dict(),
                dimension=model.dimension, engine=model.engine, simsearch=simsearch.__version__,
                created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                distances=list(model.distances),
            ).write(path)  # fmt: skip
    except OSError as error:
        raise UsageError(f"the index {path} cannot be made: {error.strerror}") from error
    return True


def _holds_items(path: Path) -> bool:
    store = Database(path)
    try:
        with store.reading() as reader:
            return reader.count() > 0
    except IndexDamagedError:  # made half-way, without its tables
        return False
    finally:
        store.close()


def _ours(path: Path) -> bool:
    known = {"features", "derived", "writer.lock", ".meta.json.partial", FILE, f".{FILE}.partial"}
    return path.name in known or path.name.startswith("items.sqlite")


def sync(engine: Engine, found: Sequence[Source], options: Options) -> Summary:
    """Synchronises the index with the given sources, or with all that it knows if none are given.

    Raises UsageError if a source is empty though the index has many items from it (a disk that is not mounted, say)
    and IndexLockedError if another process is writing.
    """
    start = time.monotonic()
    summary = Summary()
    with contextlib.nullcontext() if options.dry_run else writer_lock(engine.path):
        planned = indexing_plan.plan_sources(engine, found, options, summary)
        summary.to_read = sum(len(plan.fresh) for plan in planned)
        if options.dry_run:
            for plan in planned:
                plan.source.close()
            summary.removed = sum(len(plan.missing) for plan in planned) if options.prune else 0
            summary.failed = sum(len(plan.unreadable) for plan in planned)
            summary.items = len(engine)
        else:
            _SyncRun(engine, planned, options, summary).finish()
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
    with writer_lock(path):
        store = Database(path / "items.sqlite")
        with store.reading() as reader:
            used = reader.count() > 0  # by another process meanwhile
        store.close()
        if used:
            return
        for child in sorted(path.iterdir()):
            if child.name == "meta.json" or _ours(child):
                shutil.rmtree(child) if child.is_dir() else child.unlink()
    with contextlib.suppress(OSError):
        path.rmdir()


class _SyncRun:
    """The changing half of a synchronisation. Results gather in `pending` until they are committed."""

    def __init__(self, engine: Engine, plans: Sequence[Plan], options: Options, summary: Summary) -> None:
        self.engine, self.plans, self.options, self.summary = engine, plans, options, summary
        self.numbers = {id(plan.place): _register(engine, plan.place) for plan in plans}
        self.pending = Changes()
        self.committing = False
        self.features: list[NDArray[np.float16]] = []
        with engine.store.reading() as reader:
            self.row = reader.state("rows")
            for shard, _, stop in reader.shards.spans(0, self.row):
                reader.shards.map(shard, stop)  # damage is noticed before anything is added to it
        self.known = KnownFiles(engine.store)
        for item in (item for plan in plans for _, item in plan.fresh if item is not None):  # overwritten, or renamed
            self.known.add(item.digest, (item.row, item.width, item.height))
        self.missing: dict[bytes, list[Item]] = {}
        for plan in plans:
            for item in plan.missing:
                self.missing.setdefault(item.digest, []).append(item)
        self.elsewhere = _of_gone_sources(engine, plans)
        self.committed = time.monotonic()

    def finish(self) -> None:
        """Does it all; on Ctrl-C, what is finished is committed before the exception goes on."""
        done = False
        try:
            for plan in self.plans:
                self._settle(plan)
            self._extract()
            if self.options.prune:
                gone = [item.id for items in self.missing.values() for item in items]
                self.pending.deleted += gone
                self.summary.removed += len(gone)
            done = True
        finally:
            for plan in self.plans:
                plan.source.close()
            if not self.committing:  # else it is unknown how far that commit came
                self._commit()
            refresh_meta(self.engine, measure=done)
        _forget_gone_sources(self.engine)
        self.summary.items = len(self.engine)

    def _settle(self, plan: Plan) -> None:
        """What needs no reading."""
        number = self.numbers[id(plan.place)]
        self.pending.updated += [replace(item, source=number) for item in plan.relabelled]
        self.pending.cleared += [(number, path) for path in plan.healed]
        for entry in plan.unreadable:
            self._fail(plan, entry, entry.problem or "unreadable")

    def _extract(self) -> None:
        total = sum(len(plan.fresh) for plan in self.plans)
        if not total:
            return
        keys = [(plan, entry, item) for plan in self.plans for entry, item in plan.fresh]
        elsewhere = self.options.extractor
        groups: Iterator[list[tuple[tuple[Plan, Entry, Item | None], LoadedImage]]]
        if elsewhere is not None:
            groups = elsewhere.groups(self.engine, keys, self.known, self.options.batch_size or 0)
        else:
            model = self.engine.load_model(expected=total, threads=True)
            size = self.options.batch_size or usual_batch(model)
            tasks = (Task(reading(key[0].source, key[1].path, key[1].size), key) for key in keys)
            groups = extract(model, tasks, known=self.known, batch_size=size, workers=self.options.workers)
        done = 0
        self.options.progress(0, total)
        for group in groups:
            for (plan, entry, item), result in group:
                self._settle_image(plan, entry, item, result)
            done += len(group)
            if len(self.features) >= COMMIT_IMAGES or time.monotonic() - self.committed > COMMIT_SECONDS:
                self._commit()
            self.options.progress(done, total)
        if elsewhere is not None:
            self._commit()
            elsewhere.finished()

    def _settle_image(self, plan: Plan, entry: Entry, item: Item | None, result: LoadedImage) -> None:
        """Turns one result into a change of the index. item: what is known at that path."""
        if result.problem is not None:
            self._fail(plan, entry, result.problem)
            if item is not None and result.digest:  # it was read, and is no image any more
                self.pending.deleted.append(item.id)
                self.summary.removed += 1
            return
        number = self.numbers[id(plan.place)]
        self.pending.cleared.append((number, entry.path))
        new = Item(
            0, number, entry.path, entry.label, entry.metadata or {}, result.digest, entry.size, entry.stamp,
            result.width, result.height, -1,
        )  # fmt: skip
        if item is not None and item.digest == result.digest:
            self.summary.unchanged += 1
            self._keep(new, item)
        elif item is not None:
            self.summary.updated += 1
            self.pending.updated.append(replace(self._place(new, result), id=item.id))
        elif candidates := self.missing.get(result.digest) or self.elsewhere.get(result.digest):
            self.summary.moved += 1
            self._keep(new, candidates.pop())
        else:
            self.summary.added += 1
            self.pending.inserted.append(self._place(new, result))

    def _keep(self, new: Item, old: Item) -> None:
        """The same content elsewhere or later: everything but path, stamp and label stays."""
        kept = replace(new, id=old.id, row=old.row, width=old.width, height=old.height)
        self.pending.updated.append(kept)

    def _place(self, new: Item, result: LoadedImage) -> Item:
        """Puts features into the next row: computed ones, or a copy of those that the same content has."""
        row = self.row + len(self.features)
        if result.features is not None:
            self.summary.computed += 1
            self.features.append(result.features)
            self.known.add(result.digest, (row, result.width, result.height))
            return replace(new, row=row)
        source, width, height = self.known[result.digest]
        if source >= self.row:
            self.features.append(self.features[source - self.row])
        else:
            self.features.append(self.engine.shards.read(np.array([source], np.int64))[0])
        return replace(new, row=row, width=width, height=height)

    def _fail(self, plan: Plan, entry: Entry, reason: str) -> None:
        self.pending.failed.append((self.numbers[id(plan.place)], entry.path, reason))
        self.summary.failed += 1

    def _commit(self) -> None:
        """Writes the features, then commits the items that own them."""
        self.committing = True
        if self.features:
            checksum = self.engine.shards.write(self.row, np.stack(self.features))
            self.pending.blocks.append((self.row, len(self.features), checksum))
        if self.pending:
            self.engine.store.apply(self.pending)
        self.row += len(self.features)
        self.pending, self.features = Changes(), []
        self.committed = time.monotonic()
        self.committing = False


def _of_gone_sources(engine: Engine, plans: Sequence[Plan]) -> dict[bytes, list[Item]]:
    """Items of sources that are no longer where they were: what is found again elsewhere has moved."""
    planned = {plan.place.row.id for plan in plans if plan.place.row is not None}
    items: dict[bytes, list[Item]] = {}
    with engine.store.reading() as reader:
        for row in reader.sources():
            if row.id not in planned and row.kind != "dataset" and not os.path.exists(engine.root_of(row)):
                for item in reader.items(row.id):
                    items.setdefault(item.digest, []).append(item)
    return items


def _forget_gone_sources(engine: Engine) -> None:
    """Sources that are gone, and of which nothing is left in the index, need not be looked at again."""
    with engine.store.reading() as reader:
        away = [row.id for row in reader.sources() if row.kind != "dataset" and not os.path.exists(engine.root_of(row))]
        gone = [number for number in away if not reader.has_items(number)]
    for number in gone:
        engine.store.forget(number)


def _register(engine: Engine, place: PlannedSource) -> int:
    """Records a planned source, and where it is now, and returns its number."""
    index = engine.path.absolute()
    if place.row is not None and place.root != place.row.root:
        engine.store.relocate(place.row.id, place.root, index)
    if place.row is None or place.absorbed or (place.settings is not None and place.settings != place.row.options):
        absorbed = [(other.id, prefix) for other, prefix in place.absorbed]
        place.row = engine.store.add_source(place.kind, place.root, index, place.options, absorbed)
        place.absorbed = []
    return place.row.id


def refresh_meta(engine: Engine, measure: bool = True) -> None:
    """Brings `meta.json` up to date with what is committed; `measure`: see `ann_maintenance.update`."""
    with engine.store.reading() as reader:
        generation, items, rows = reader.state("generation"), reader.count(), reader.state("rows")
        failures = reader.failure_count()
        meta = Meta.read(engine.path)  # another process may have tuned it
        if (meta.generation, meta.items) == (generation, items):
            engine.meta = meta
            return
        distances, measured = meta.distances, meta.distances_of
        grown = not 0.8 * measured <= items <= 1.25 * measured
        if items >= 2 and grown and (items >= similarity.ENOUGH or not distances or measured):
            live = reader.rows()
            sample = np.random.default_rng(0).choice(live, min(SAMPLE, len(live)), replace=False)
            distances, measured = list(similarity.quantiles(reader.shards.read(np.sort(sample)))), items
        search = meta.search
        if search["kind"] != "exact":
            search = ann_maintenance.update(engine.path, search, engine.snapshot(reader).flat, reader.rows(), measure)
    engine.meta = replace(
        meta, generation=generation, items=items, rows=rows, failures=failures, distances=distances,
        distances_of=measured, engine=engine.engine_used or meta.engine, search=search,
    )  # fmt: skip
    engine.meta.write(engine.path)
