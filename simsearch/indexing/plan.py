"""What differs between an index and its sources: found by listing and comparing, before anything is changed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from simsearch.errors import UsageError
from simsearch.images.sources import base, resolve
from simsearch.storage.filters import replace_surrogates
from simsearch.storage.reader import Item, SourceRow

if TYPE_CHECKING:
    from simsearch.storage.index import Index
    from simsearch.storage.reader import Reader
from simsearch.indexing.options import BuildOptions, Summary


@dataclass
class PlannedSource:
    """A source as it is, or will be, recorded.

    root: where it is now. row: its record, if there is one. settings: what to record anew, if anything.
    absorbed: narrower sources that become part of this one, each with the path from this root to its own.
    """

    kind: str
    root: str
    row: SourceRow | None = None
    settings: dict[str, Any] | None = None
    absorbed: list[tuple[SourceRow, str]] = field(default_factory=list)

    @property
    def options(self) -> dict[str, Any]:
        """The settings in force."""
        if self.settings is not None:
            return self.settings
        return self.row.options if self.row is not None else {}


@dataclass
class Plan:
    """What differs between one source, or a part of one, and the index.

    fresh: images to read, each with the item known at its path. missing: items whose image is gone, or has moved.
    healed: paths of recorded failures that are none any more.
    """

    place: PlannedSource
    source: base.Source
    fresh: list[tuple[base.Entry, Item | None]] = field(default_factory=list)
    relabelled: list[Item] = field(default_factory=list)
    missing: list[Item] = field(default_factory=list)
    unreadable: list[base.Entry] = field(default_factory=list)
    healed: list[str] = field(default_factory=list)


def plan_sources(index: Index, found: Sequence[base.Source], options: BuildOptions, summary: Summary) -> list[Plan]:
    """Compares the given sources with the index, or all that it knows if none are given; counts go to `summary`.

    Raises UsageError if a source is empty though the index has many items from it (a disk that is not mounted, say).
    """
    with index.reading() as reader:
        known = [(row, index.root_of(row)) for row in reader.sources()]

        def kept(row: SourceRow, root: str) -> bool:
            return row.kind == "dataset" or os.path.exists(root) or reader.has_items(row.id)

        pairs = _placed(found, known, options) if found else [_again(reader, *pair) for pair in known if kept(*pair)]
        return [_compare(reader, place, source, options, summary) for place, source in pairs]


def _again(reader: Reader, row: SourceRow, root: str) -> tuple[PlannedSource, base.Source]:
    source = resolve.reopen(row.kind, root)
    if isinstance(source, base.FolderSource) and row.options.get("partial"):
        source.only = frozenset(item.path for item in reader.items(row.id))
    return PlannedSource(row.kind, root, row), source


def _placed(
    found: Sequence[base.Source], known: Sequence[tuple[SourceRow, str]], options: BuildOptions
) -> list[tuple[PlannedSource, base.Source]]:
    """The place of each source; of sources that overlap, the widest counts."""
    places = [PlannedSource(row.kind, root, row) for row, root in known]
    pairs: list[tuple[PlannedSource, base.Source]] = []
    for source in sorted(found, key=_extent):
        if any(_covers(other, source) for _, other in pairs):
            continue
        if isinstance(source, base.FolderSource):
            place, within = _folder_place(source, places, options)
            source = base.FolderSource(place.root, within)
        else:
            place = next((p for p in places if (p.kind, p.root) == (source.kind, source.root)), None) or PlannedSource(
                source.kind, source.root
            )
            place.settings = _settings(options)
        if not any(place is other for other in places):
            places.append(place)
        pairs.append((place, source))
    return pairs


def _folder_place(
    source: base.FolderSource, places: Sequence[PlannedSource], options: BuildOptions
) -> tuple[PlannedSource, str]:
    """The place of a folder or a single file, and the path from the place's root to it."""
    folders = [place for place in places if place.kind == source.kind]
    for place in folders:
        partial = place.options.get("partial", False)
        if source.root == place.root and (source.within or partial or not place.row):
            if not source.within:
                place.settings = _settings(options)
                place.absorbed = _narrower(place, folders)
            return place, source.within
        if source.root == place.root:
            if options.prune:  # described anew
                place.settings = _settings(options)
            return place, ""
        if not partial and below(source.root, place.root.rstrip("/")):
            return place, os.path.normpath(os.path.join(os.path.relpath(source.root, place.root), source.within))
    place = PlannedSource(source.kind, source.root, settings=_settings(options))
    if source.within:
        place.settings = {**_settings(options), "partial": True}
    else:
        place.absorbed = _narrower(place, folders)
    return place, source.within


def _narrower(place: PlannedSource, folders: Sequence[PlannedSource]) -> list[tuple[SourceRow, str]]:
    """The recorded sources inside a folder, each with the path to it."""
    return [
        (other.row, os.path.relpath(other.root, place.root))
        for other in folders
        if other is not place and other.row is not None and below(other.root, place.root.rstrip("/"))
    ]


def _settings(options: BuildOptions) -> dict[str, Any]:
    return {"exclude": list(options.exclude), "labels": options.labels}


def _extent(source: base.Source) -> tuple[int, str]:
    """Sorts wide folders before narrow ones and single files."""
    return len(os.path.normpath(os.path.join(source.root, source.within)).split(os.sep)), source.root


def _covers(wide: base.Source, narrow: base.Source) -> bool:
    if not isinstance(wide, base.FolderSource) or not isinstance(narrow, base.FolderSource):
        return (wide.kind, wide.root) == (narrow.kind, narrow.root)
    return below(*(os.path.join(source.root, source.within).rstrip("/") for source in (narrow, wide)))


def _compare(
    reader: Reader, place: PlannedSource, source: base.Source, options: BuildOptions, summary: Summary
) -> Plan:
    """Lists a source and finds what differs from the index."""
    plan = Plan(place, source)
    listing = source.listing((*options.exclude, *place.options.get("exclude", ())))
    summary.skipped += listing.skipped
    summary.unread += [(source.display(path), reason) for path, reason in listing.unread]
    within = source.within
    held, failed = _held(reader, place, within)
    partial = place.options.get("partial", False)
    if held and not listing.entries and options.prune and not within and not partial:
        reasons = "; ".join(f"{source.display(path)}: {reason}" for path, reason in listing.unread)
        raise UsageError(
            f"{source.root} holds no images, but the index has {len(held)} from it",
            hint=(reasons and reasons + "; ")
            + "is the disk mounted? `simsearch remove` takes them out, --no-prune keeps them",
        )
    for entry, label in zip(listing.entries, _labels(source, listing.entries, place, options), strict=True):
        item = held.get(entry.path)
        if entry.problem is not None:
            failed.discard(entry.path)
            plan.unreadable.append(entry)
            if entry.problem != base.GONE:  # it may be readable again tomorrow
                held.pop(entry.path, None)
            continue
        held.pop(entry.path, None)
        if item is None or (item.size, item.stamp) != (entry.size, entry.stamp):
            failed.discard(entry.path)
            plan.fresh.append((replace(entry, label=label), item))
            continue
        summary.unchanged += 1
        if (item.label, item.metadata) != (label, entry.metadata or {}):
            plan.relabelled.append(replace(item, label=label, metadata=entry.metadata or {}))
    unread = [path for path, _ in listing.unread]
    plan.missing = [item for path, item in held.items() if not any(below(path, folder) for folder in unread)]
    plan.healed = sorted(path for path in failed if not any(below(path, folder) for folder in unread))
    return plan


def _held(reader: Reader, place: PlannedSource, within: str) -> tuple[dict[str, Item], set[str]]:
    """What the index has of a place, or of the part of it below `within`: items by path, and failed paths."""
    rows = [(place.row, "")] if place.row is not None else []
    held: dict[str, Item] = {}
    failed: set[str] = set()
    for row, prefix in [*rows, *((row, prefix + "/") for row, prefix in place.absorbed)]:
        below_it = "" if prefix else within
        paths = ((prefix + item.path, item) for item in reader.items(row.id, below_it))
        held |= {path: replace(item, path=path) for path, item in paths}
        failed |= {prefix + path for _, path, _ in reader.failures(row.id, below_it)}
    if within:
        held = {path: item for path, item in held.items() if below(path, within)}
        failed = {path for path in failed if below(path, within)}
    return held, failed


def _labels(
    source: base.Source, entries: Sequence[base.Entry], place: PlannedSource, options: BuildOptions
) -> list[str | None]:
    """The label of each entry, by the rule asked for or else by that recorded for the source."""
    rule = options.labels if options.labels != "auto" else place.options.get("labels", "auto")
    if rule == "none":
        return [None] * len(entries)
    if source.labelled:
        return [entry.label for entry in entries]
    return [
        None if label is None else replace_surrogates(label) for label in base.folder_labels(entries, rule == "folder")
    ]


def below(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies below it; everything lies below ""."""
    return not folder or path == folder or path.startswith(folder + "/")
