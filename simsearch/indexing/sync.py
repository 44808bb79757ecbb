"""Brings an index up to date with its sources.

Reads only the images that `simsearch.indexing.plan` found to differ. Contents are identified by their SHA-256 digest: a
file that was touched, renamed, moved or copied keeps its features. Changes are committed every few seconds, so that an
interrupted build continues where it stopped.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from simsearch.images.decode import names_extra
from simsearch.images.sources.remote.kept import KeptObjects, Place
from simsearch.indexing import meta_update, prefetch, sketches, upload_folder
from simsearch.indexing import plan as indexing_plan
from simsearch.indexing.extract import extract, usual_batch
from simsearch.indexing.known_files import KnownFiles
from simsearch.indexing.load import LoadedImage
from simsearch.indexing.options import BuildOptions, Summary
from simsearch.indexing.plan import Plan, PlannedSource
from simsearch.storage import roots
from simsearch.storage.database import Changes
from simsearch.storage.reader import Item

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.images.sources.base import Entry, Source
    from simsearch.storage.index import Index
    from simsearch.storage.model import IndexModel

COMMIT_IMAGES = 256
COMMIT_SECONDS = 2.0
"""Changes are committed after COMMIT_IMAGES new features or COMMIT_SECONDS seconds, whichever comes first."""


def sync(index: Index, model: IndexModel, found: Sequence[Source], options: BuildOptions) -> Summary:
    """Brings the index up to date with its sources, and returns the counts of changes.

    model: computes the features of new images.
    found: the sources; if empty, all sources that the index has recorded.
    Raises UsageError if a source is empty but the index has items from it (for example, an unmounted disk), unless
    `options.prune` is False.
    Raises IndexLockedError if another process is writing, and IndexReplacedError if the index was replaced at its path.
    """
    start = time.monotonic()
    summary = Summary()
    with contextlib.nullcontext() if options.dry_run else index.writing():
        with contextlib.nullcontext() if found or options.dry_run else upload_folder.settled(index):
            planned = indexing_plan.plan_sources(index, found, options, summary)
        summary.to_read = sum(len(plan.fresh) for plan in planned)
        if options.dry_run:
            for plan in planned:
                plan.source.close()
            summary.removed = sum(len(plan.missing) for plan in planned) if options.prune else 0
            summary.failed = sum(len(plan.unreadable) for plan in planned)
            summary.items = len(index)
        else:
            _SyncRun(index, model, planned, options, summary).finish()
    summary.seconds = time.monotonic() - start
    return summary


def remove(index: Index, items: Sequence[Item]) -> int:
    """Removes items from the index and returns their number.

    Raises IndexLockedError if another process is writing, and IndexReplacedError if the index was replaced at its path.
    """
    with index.writing():
        remove_while_writing(index, items)
    return len(items)


def remove_while_writing(index: Index, items: Sequence[Item]) -> None:
    """Removes items from the index. The caller holds the writer lock."""
    index.database.apply(Changes(deleted=[item.id for item in items]))
    meta_update.refresh_meta(index)


def put_back(index: Index, items: Sequence[Item], compactions: int) -> int:
    """Adds removed items again, with their former features; returns how many of `items` are in the index afterwards.

    Items whose source is no longer recorded are not added.
    compactions: the number of compactions of the index when the items were removed. If the index was compacted after
    that, the features are gone, and nothing is added.
    Raises IndexLockedError if another process is writing, and IndexReplacedError if the index was replaced at its path.
    """
    with index.writing(patience=5):
        with index.reading() as reader:
            sources = {row.id for row in reader.sources()}
            known = [item for item in items if item.source in sources]
            absent = [item for item in known if not any(reader.items(item.source, item.path))]
            if reader.compactions() != compactions:
                return len(known) - len(absent)
        if absent:
            index.database.apply(Changes(inserted=absent))
            meta_update.refresh_meta(index)
    return len(known)


class _SyncRun:
    """Applies the plans to the index; collects changes in `pending` and `features` until the next commit."""

    def __init__(
        self, index: Index, model: IndexModel, plans: Sequence[Plan], options: BuildOptions, summary: Summary
    ) -> None:
        self.index, self.model, self.plans, self.options, self.summary = index, model, plans, options, summary
        self.numbers = {id(plan.place): _register(index, plan.place) for plan in plans}
        self.pending = Changes()
        self.committing = False
        self.features: list[NDArray[np.float16]] = []
        with index.reading() as reader:
            self.row = reader.state("rows")
            for shard, _, stop in reader.shards.spans(0, self.row):
                reader.shards.map(shard, stop)  # raises if a file is damaged, before anything is written
        self.known = KnownFiles(index.database)
        # Added now: these items may be overwritten or renamed before another file of the same content is read.
        for item in (item for plan in plans for _, item in plan.fresh if item is not None):
            self.known.add(item.digest, (item.row, item.width, item.height))
        self.missing: dict[bytes, list[Item]] = {}
        for plan in plans:
            for item in plan.missing:
                self.missing.setdefault(item.digest, []).append(item)
        self.elsewhere = _of_gone_sources(index, plans)
        self.kept = KeptObjects()
        self.applied: list[Place] = []  # remote images whose results are not committed yet
        self.committed = time.monotonic()

    def finish(self) -> None:
        """Applies all plans. On an exception, commits the part that is finished, and raises the exception again."""
        done = False
        try:
            for plan in self.plans:
                self._apply_plan(plan)
            self._extract()
            if self.options.prune:
                gone = [item.id for items in self.missing.values() for item in items]
                self.pending.deleted += gone
                self.summary.removed += len(gone)
            done = True
        finally:
            for plan in self.plans:
                plan.source.close()
            if not self.committing:  # if a commit was interrupted, its outcome is unknown
                self._commit()
            meta_update.refresh_meta(self.index, measure=done, engine=self.model.engine)
        if not self.options.keep_gone:
            _forget_gone_sources(self.index)
        self.summary.items = len(self.index)
        sketches.update(self.index, learn=self.options.prune or self.summary.computed >= COMMIT_IMAGES)

    def _apply_plan(self, plan: Plan) -> None:
        """Prepares those changes of a plan for which no image has to be read."""
        number = self.numbers[id(plan.place)]
        self.pending.updated += [replace(item, source=number) for item in plan.relabelled]
        self.pending.cleared += [(number, path) for path in plan.recovered]
        for entry in plan.unreadable:
            self._record_failure(plan, entry, entry.problem or "unreadable")

    def _extract(self) -> None:
        """Computes the features of all new and changed images, and commits the changes at intervals."""
        total = sum(len(plan.fresh) for plan in self.plans)
        if not total:
            return
        keys = [(plan, entry, item) for plan in self.plans for entry, item in plan.fresh]
        elsewhere = self.options.extractor
        groups: Iterator[list[tuple[tuple[Plan, Entry, Item | None], LoadedImage]]]
        if elsewhere is not None:
            groups = elsewhere.groups(self.index, self.model, keys, self.known, self.options.batch_size or 0)
        else:
            model = self.model.load(expected=total, threads=True)
            size = self.options.batch_size or usual_batch(model)
            tasks = prefetch.tasks(
                ((key, key[0].source, key[1].path, key[1].size, key[1].stamp) for key in keys), self.kept
            )
            groups = extract(model, tasks, known=self.known, batch_size=size, workers=self.options.workers)
        done = 0
        self.options.progress(0, total)
        for group in groups:
            for (plan, entry, item), result in group:
                self._apply_result(plan, entry, item, result)
            done += len(group)
            if len(self.features) >= COMMIT_IMAGES or time.monotonic() - self.committed > COMMIT_SECONDS:
                self._commit()
                sketches.keep_up(self.index, self.row)
            self.options.progress(done, total)
        if elsewhere is not None:
            self._commit()
            elsewhere.finished()

    def _apply_result(self, plan: Plan, entry: Entry, item: Item | None, result: LoadedImage) -> None:
        """Prepares the change of the index for one loaded image: a new or updated item, or a failure.

        plan, entry: the plan of the image's source, and the image as it was listed.
        item: the item recorded at the image's path, or None.
        """
        if plan.source.remote:
            self.applied.append((plan.source.root, entry.path, entry.size, entry.stamp))
        if result.problem is not None:
            self._record_failure(plan, entry, result.problem)
            if item is not None and result.digest:  # the file was read: it is no longer an image
                self.pending.deleted.append(item.id)
                self.summary.removed += 1
            return
        number = self.numbers[id(plan.place)]
        self.pending.cleared.append((number, entry.path))
        new = Item(
            0,
            number,
            entry.path,
            entry.label,
            entry.metadata or {},
            result.digest,
            entry.size,
            entry.stamp,
            result.width,
            result.height,
            -1,
        )
        if item is not None and item.digest == result.digest:
            self.summary.unchanged += 1
            self._update_recorded(new, item)
        elif item is not None:
            self.summary.updated += 1
            self.pending.updated.append(replace(self._with_row(new, result), id=item.id))
        elif candidates := self.missing.get(result.digest) or self.elsewhere.get(result.digest):
            self.summary.moved += 1
            self._update_recorded(new, candidates.pop())
        else:
            self.summary.added += 1
            self.pending.inserted.append(self._with_row(new, result))

    def _update_recorded(self, new: Item, old: Item) -> None:
        """Prepares an update of the item `old` with the source, path, stamp, label and metadata of `new`.

        The content of the image has not changed, so the features stay.
        """
        kept = replace(new, id=old.id, row=old.row, width=old.width, height=old.height)
        self.pending.updated.append(kept)

    def _with_row(self, new: Item, result: LoadedImage) -> Item:
        """Returns the item `new` with the next free row, and adds its features to the next commit.

        The features are those of the result, or a copy of the features of another file with the same content.
        """
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
            self.features.append(self.index.feature_files.read(np.array([source], np.int64))[0])
        return replace(new, row=row, width=width, height=height)

    def _record_failure(self, plan: Plan, entry: Entry, reason: str) -> None:
        """Records an image that could not be read, with the reason."""
        self.pending.failed.append((self.numbers[id(plan.place)], entry.path, reason))
        self.summary.failed += 1
        if names_extra(reason):
            self.summary.missing_extras[reason] = self.summary.missing_extras.get(reason, 0) + 1

    def _commit(self) -> None:
        """Writes the collected features to disk, then commits the collected changes."""
        self.committing = True
        self.index.check_in_place()
        if self.features:
            checksum = self.index.feature_files.write(self.row, np.stack(self.features))
            self.pending.blocks.append((self.row, len(self.features), checksum))
        if self.pending:
            self.index.database.apply(self.pending)
        self.kept.forget(self.applied)
        self.applied = []
        self.row += len(self.features)
        self.pending, self.features = Changes(), []
        self.committed = time.monotonic()
        self.committing = False


def _of_gone_sources(index: Index, plans: Sequence[Plan]) -> dict[bytes, list[Item]]:
    """Returns a mapping from SHA-256 digest to the items with this content, for sources that no longer exist.

    If the build finds the content of such an item in another source, the image counts as moved, not as new.
    plans: the plans of this build. Sources that have a plan are left out, because they are compared anyway.
    """
    planned = {plan.place.row.id for plan in plans if plan.place.row is not None}
    items: dict[bytes, list[Item]] = {}
    with index.reading() as reader:
        for row in reader.sources():
            if row.id not in planned and not roots.may_exist(row.kind, index.root_of(row)):
                for item in reader.items(row.id):
                    items.setdefault(item.digest, []).append(item)
    return items


def _forget_gone_sources(index: Index) -> None:
    """Deletes the records of sources that no longer exist and have no items left."""
    with index.reading() as reader:
        away = [row.id for row in reader.sources() if not roots.may_exist(row.kind, index.root_of(row))]
        gone = [number for number in away if not reader.has_items(number)]
    for number in gone:
        index.database.forget(number)


def _register(index: Index, place: PlannedSource) -> int:
    """Records a planned source in the index, with its current location, and returns the id of its record."""
    path = index.path.absolute()
    if place.row is not None and place.root != place.row.root:
        index.database.relocate(place.row.id, place.root, path)
    if place.row is None or place.absorbed or (place.settings is not None and place.settings != place.row.options):
        absorbed = [(other.id, prefix) for other, prefix in place.absorbed]
        place.row = index.database.add_source(place.kind, place.root, path, place.options, absorbed)
        place.absorbed = []
    return place.row.id
