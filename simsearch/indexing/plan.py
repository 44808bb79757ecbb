"""Plans a build: compares the images in the sources with the items of the index, without changing anything."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from simsearch.errors import UsageError
from simsearch.images.sources import base, exclude, resolve
from simsearch.images.sources.remote import addresses
from simsearch.indexing import upload_folder
from simsearch.indexing.options import BuildOptions, Summary
from simsearch.storage import roots
from simsearch.storage.filters import replace_surrogates
from simsearch.storage.reader import Item, SourceRow

if TYPE_CHECKING:
    from simsearch.storage.index import Index
    from simsearch.storage.reader import Reader


@dataclass
class PlannedSource:
    """A source of images in a build, which the index has recorded or will record.

    root: its current location.
    row: its record in the index; None for a new source.
    settings: the build options to record for it; None to keep those in the record.
    absorbed: (record, path relative to `root`) of each recorded source inside this one. These sources become part of
    it.
    """

    kind: str
    root: str
    row: SourceRow | None = None
    settings: dict[str, Any] | None = None
    absorbed: list[tuple[SourceRow, str]] = field(default_factory=list)

    @property
    def options(self) -> dict[str, Any]:
        """The build options of the source: `settings`, or the options in its record if `settings` is None."""
        if self.settings is not None:
            return self.settings
        return self.row.options if self.row is not None else {}


@dataclass
class Plan:
    """The differences between the index and one source, or a part of the source.

    place: the whole source. source: the same source, or the part of it that was compared.
    fresh: (image, item) of each new or changed image. item: the item recorded at the image's path, or None.
    relabelled: items with a new label or new metadata.
    missing: items whose image is gone or has moved.
    unreadable: images that cannot be read.
    recovered: paths whose recorded failure no longer holds, since the image is readable again or gone.
    """

    place: PlannedSource
    source: base.Source
    fresh: list[tuple[base.Entry, Item | None]] = field(default_factory=list)
    relabelled: list[Item] = field(default_factory=list)
    missing: list[Item] = field(default_factory=list)
    unreadable: list[base.Entry] = field(default_factory=list)
    recovered: list[str] = field(default_factory=list)


def plan_sources(index: Index, found: Sequence[base.Source], options: BuildOptions, summary: Summary) -> list[Plan]:
    """Compares sources with the index; returns the differences of each source, and adds the counts to `summary`.

    found: the sources; if empty, all sources that the index has recorded.
    Raises UsageError if a source is empty but the index has items from it (for example, an unmounted disk), unless
    `options.prune` is False.
    """
    with index.reading() as reader:
        known = [(row, index.root_of(row)) for row in reader.sources()]

        def is_relevant(row: SourceRow, root: str) -> bool:
            if options.keep_gone and addresses.is_kind(row.kind):  # `watch` does not follow sources on other machines
                return False
            exists = roots.may_exist(row.kind, root)
            return exists or (not options.keep_gone and reader.has_items(row.id))

        pairs = (
            _assign_sources(found, known, options)
            if found
            else [_reopen_source(reader, *pair) for pair in known if is_relevant(*pair)]
        )
        summary.unmatched = list(options.exclude)
        own = upload_folder.manifest_path(index) if upload_folder.was_emptied(index) else None
        return [_compare(reader, place, source, options, summary, place.root == own) for place, source in pairs]


def _reopen_source(reader: Reader, row: SourceRow, root: str) -> tuple[PlannedSource, base.Source]:
    """Opens a recorded source; returns its `PlannedSource` and the opened source. root: its current location."""
    source = resolve.reopen(row.kind, root)
    if source.nests and row.options.get("partial"):
        source.only = frozenset(item.path for item in reader.items(row.id))
    return PlannedSource(row.kind, root, row), source


def _assign_sources(
    found: Sequence[base.Source], known: Sequence[tuple[SourceRow, str]], options: BuildOptions
) -> list[tuple[PlannedSource, base.Source]]:
    """Returns (planned source, source to list) for each source in `found` that does not lie inside another one.

    The source to list can be a part of the planned source, for example a subfolder of a folder that is recorded.
    known: (record, current location) of each recorded source.
    """
    places = [PlannedSource(row.kind, root, row) for row, root in known]
    pairs: list[tuple[PlannedSource, base.Source]] = []
    for source in sorted(found, key=_extent):
        if any(_covers(other, source) for _, other in pairs):
            continue
        if source.nests:
            place, within = _folder_place(source, places, options)
            source = resolve.part(source.kind, place.root, within)
        else:
            place = next((p for p in places if (p.kind, p.root) == (source.kind, source.root)), None) or PlannedSource(
                source.kind, source.root
            )
            place.settings = _settings(options, place)
        if not any(place is other for other in places):
            places.append(place)
        pairs.append((place, source))
    return pairs


def _folder_place(
    source: base.Source, places: Sequence[PlannedSource], options: BuildOptions
) -> tuple[PlannedSource, str]:
    """Returns the planned source that contains a folder or single file, and the path of the folder or file in it.

    If none of `places` contains it, makes a new planned source.
    source: the folder or single file. places: all recorded sources, and new sources planned so far.
    """
    folders = [place for place in places if place.kind == source.kind]
    for place in folders:
        partial = place.options.get("partial", False)
        if source.root == place.root and (source.within or partial or not place.row):
            if not source.within:
                place.settings = _settings(options, place)
                place.absorbed = _narrower(place, folders)
            return place, source.within
        if source.root == place.root:
            if options.prune:  # a build that prunes also replaces the recorded options
                place.settings = _settings(options, place)
            return place, ""
        if not partial and below(source.root, place.root.rstrip("/")):
            return place, "/".join(part for part in (_relative(source.root, place.root), source.within) if part)
    place = PlannedSource(source.kind, source.root, settings=_settings(options, source))
    if source.within:
        place.settings = {**_settings(options, source), "partial": True}
    else:
        place.absorbed = _narrower(place, folders)
    return place, source.within


def _narrower(place: PlannedSource, folders: Sequence[PlannedSource]) -> list[tuple[SourceRow, str]]:
    """Returns (record, path relative to `place`) of each recorded source in `folders` that lies inside `place`."""
    return [
        (other.row, _relative(other.root, place.root))
        for other in folders
        if other is not place and other.row is not None and below(other.root, place.root.rstrip("/"))
    ]


def _relative(root: str, outer: str) -> str:
    """Returns the path of the folder `root` relative to `outer`, a folder that contains it."""
    return addresses.relative_to(root, outer) if addresses.is_remote(outer) else os.path.relpath(root, outer)


def _settings(options: BuildOptions, source: base.Source | PlannedSource) -> dict[str, Any]:
    """Returns the build options to record for a source.

    Patterns of `exclude` are rewritten, so that they do not depend on the current folder.
    """
    root = os.path.dirname(source.root) if source.kind == "manifest" else source.root
    return {
        "exclude": exclude.rooted(options.exclude, root),
        "labels": options.labels,
        **({"outside": True} if options.allow_outside else {}),
    }


def _extent(source: base.Source) -> tuple[int, str]:
    """Returns a sort key that puts outer folders before the folders and files inside them."""
    return len(os.path.normpath(os.path.join(source.root, source.within)).split(os.sep)), source.root


def _covers(wide: base.Source, narrow: base.Source) -> bool:
    """Returns True if `narrow` is the same source as `wide`, or lies inside it."""
    if not wide.nests or wide.kind != narrow.kind:
        return (wide.kind, wide.root) == (narrow.kind, narrow.root)
    return below(*((s.display(s.within) if s.within else s.root).rstrip("/") for s in (narrow, wide)))


def _compare(
    reader: Reader, place: PlannedSource, source: base.Source, options: BuildOptions, summary: Summary, emptied: bool
) -> Plan:
    """Lists a source, and returns its differences from the index; adds the counts to `summary`.

    emptied: True if the user has removed all images of the source on purpose. Otherwise, a source that has items in the
    index but no images is an error, because its disk may be unmounted.
    """
    plan = Plan(place, source)
    if source.kind in {"manifest", "parquet"}:  # links in the user's own folders are trusted
        source.outside = place.options.get("outside") is True
    listing = source.listing((*options.exclude, *place.options.get("exclude", ())))
    summary.skipped += listing.skipped
    for reason, count in listing.left_out.items():
        summary.left_out[reason] = summary.left_out.get(reason, 0) + count
    summary.unmatched = [pattern for pattern in summary.unmatched if pattern not in listing.matched]
    summary.unread += [(source.display(path), reason) for path, reason in listing.unread]
    within = source.within
    items, failed = _recorded(reader, place, within)
    partial = place.options.get("partial", False)
    if items and not listing.entries and options.prune and not within and not partial and not emptied:
        reasons = "".join(f"{source.display(path)}: {reason}; " for path, reason in listing.unread)
        raise UsageError(
            f"{source.root} holds no images, but the index has {len(items)} items from it",
            hint=f"{reasons}is the disk mounted? engine.remove removes the items, prune=False keeps them",
            shell_hint=f"{reasons}is the disk mounted? `simsearch remove` removes the items, --no-prune keeps them",
        )
    for entry, label in zip(listing.entries, _labels(source, listing.entries, place, options), strict=True):
        item = items.get(entry.path)
        if entry.problem is not None:
            failed.discard(entry.path)
            plan.unreadable.append(entry)
            if entry.problem != base.GONE:  # keep the item: the image may be readable next time
                items.pop(entry.path, None)
            continue
        items.pop(entry.path, None)
        if item is None or (item.size, item.stamp) != (entry.size, entry.stamp):
            failed.discard(entry.path)
            plan.fresh.append((replace(entry, label=label), item))
            continue
        summary.unchanged += 1
        if (item.label, item.metadata) != (label, entry.metadata or {}):
            summary.unlabelled += label is None and item.label is not None
            plan.relabelled.append(replace(item, label=label, metadata=entry.metadata or {}))
    unread = [path for path, _ in listing.unread]
    plan.missing = [item for path, item in items.items() if not any(below(path, folder) for folder in unread)]
    plan.recovered = sorted(path for path in failed if not any(below(path, folder) for folder in unread))
    return plan


def _recorded(reader: Reader, place: PlannedSource, within: str) -> tuple[dict[str, Item], set[str]]:
    """Returns a mapping from path to item for the recorded items of a source, and the paths of its recorded failures.

    Sources that become part of this source are included.
    within: a path in the source; only this path and paths below it are returned; "" for all paths.
    """
    rows = [(place.row, "")] if place.row is not None else []
    items: dict[str, Item] = {}
    failed: set[str] = set()
    for row, prefix in [*rows, *((row, prefix + "/") for row, prefix in place.absorbed)]:
        folder = "" if prefix else within
        paths = ((prefix + item.path, item) for item in reader.items(row.id, folder))
        items |= {path: replace(item, path=path) for path, item in paths}
        failed |= {prefix + path for _, path, _ in reader.failures(row.id, folder)}
    if within:
        items = {path: item for path, item in items.items() if below(path, within)}
        failed = {path for path in failed if below(path, within)}
    return items, failed


def _labels(
    source: base.Source, entries: Sequence[base.Entry], place: PlannedSource, options: BuildOptions
) -> list[str | None]:
    """Returns the label of each entry.

    The rule is `options.labels` or, if this is "auto", the rule that is recorded for the source.
    """
    rule = options.labels if options.labels != "auto" else place.options.get("labels", "auto")
    if rule == "none":
        return [None] * len(entries)
    if source.labelled:
        return [entry.label for entry in entries]
    return [None if label is None else replace_surrogates(label) for label in base.folder_labels(entries)]


def below(path: str, folder: str) -> bool:
    """Returns True if `path` is `folder` or lies below it; every path lies below ""."""
    return not folder or path == folder or path.startswith(folder + "/")
