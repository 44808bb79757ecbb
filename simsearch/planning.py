"""What differs between an index and its sources: found by listing and comparing, before anything is changed."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from simsearch import opening, sources
from simsearch.errors import UsageError
from simsearch.filters import text
from simsearch.store import Item, SourceRow

if TYPE_CHECKING:
    from simsearch.loading import Extracted
    from simsearch.storage.index import Index
    from simsearch.storage.model import IndexModel
    from simsearch.store import Reader

Progress = Callable[[int, int], None]
"""Called with the number of images dealt with and their total."""


class Extractor(Protocol):
    """What computes features elsewhere; `cluster.Cluster` is one."""

    def groups(
        self, index: Index, model: IndexModel, keys: Sequence[Any], known: Container[bytes], batch_size: int
    ) -> Iterator[list[tuple[Any, Extracted]]]:
        """See `extract.extract`: the results of all images in their order. batch_size: 0 chooses for the device."""
        ...

    def finished(self) -> None:
        """Called when all of it is committed."""
        ...


@dataclass(frozen=True)
class Options:
    """How to synchronise.

    exclude: globs over relative paths or names. labels: "auto" takes folder names if every image sits in a folder,
    "folder" wherever one does, "none" never. prune: remove items whose image is gone. batch_size, workers: None
    chooses for the machine. progress: see `Progress`. extractor: computes elsewhere; None computes here.
    """

    exclude: tuple[str, ...] = ()
    labels: Literal["auto", "folder", "none"] = "auto"
    prune: bool = True
    dry_run: bool = False
    batch_size: int | None = None
    workers: int | None = None
    progress: Progress = lambda done, total: None
    extractor: Extractor | None = None

    def __post_init__(self) -> None:
        exclude: Any = self.exclude
        if isinstance(exclude, str):
            object.__setattr__(self, "exclude", (exclude,))
        if self.labels not in ("auto", "folder", "none"):
            raise UsageError(f"labels is {self.labels!r}", hint="auto, folder or none")
        for name, value in (("batch_size", self.batch_size), ("workers", self.workers)):
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}, but must be at least 1")


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
class Place:
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

    place: Place
    source: sources.Source
    fresh: list[tuple[sources.Entry, Item | None]] = field(default_factory=list)
    relabelled: list[Item] = field(default_factory=list)
    missing: list[Item] = field(default_factory=list)
    unreadable: list[sources.Entry] = field(default_factory=list)
    healed: list[str] = field(default_factory=list)


def plans(index: Index, found: Sequence[sources.Source], options: Options, summary: Summary) -> list[Plan]:
    """Compares the given sources with the index, or all that it knows if none are given; counts go to `summary`.

    Raises UsageError if a source is empty though the index has many items from it (a disk that is not mounted, say).
    """
    with index.reading() as reader:
        known = [(row, index.root_of(row)) for row in reader.sources()]

        def kept(row: SourceRow, root: str) -> bool:
            return row.kind == "dataset" or os.path.exists(root) or reader.has_items(row.id)

        pairs = _placed(found, known, options) if found else [_again(reader, *pair) for pair in known if kept(*pair)]
        return [_compare(reader, place, source, options, summary) for place, source in pairs]


def _again(reader: Reader, row: SourceRow, root: str) -> tuple[Place, sources.Source]:
    source = opening.reopen(row.kind, root)
    if isinstance(source, sources.FolderSource) and row.options.get("partial"):
        source.only = frozenset(item.path for item in reader.items(row.id))
    return Place(row.kind, root, row), source


def _placed(
    found: Sequence[sources.Source], known: Sequence[tuple[SourceRow, str]], options: Options
) -> list[tuple[Place, sources.Source]]:
    """The place of each source; of sources that overlap, the widest counts."""
    places = [Place(row.kind, root, row) for row, root in known]
    pairs: list[tuple[Place, sources.Source]] = []
    for source in sorted(found, key=_extent):
        if any(_covers(other, source) for _, other in pairs):
            continue
        if isinstance(source, sources.FolderSource):
            place, within = _folder_place(source, places, options)
            source = sources.FolderSource(place.root, within)
        else:
            place = next((p for p in places if (p.kind, p.root) == (source.kind, source.root)), None) or Place(
                source.kind, source.root
            )
            place.settings = _settings(options)
        if not any(place is other for other in places):
            places.append(place)
        pairs.append((place, source))
    return pairs


def _folder_place(source: sources.FolderSource, places: Sequence[Place], options: Options) -> tuple[Place, str]:
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
    place = Place(source.kind, source.root, settings=_settings(options))
    if source.within:
        place.settings = {**_settings(options), "partial": True}
    else:
        place.absorbed = _narrower(place, folders)
    return place, source.within


def _narrower(place: Place, folders: Sequence[Place]) -> list[tuple[SourceRow, str]]:
    """The recorded sources inside a folder, each with the path to it."""
    return [
        (other.row, os.path.relpath(other.root, place.root))
        for other in folders
        if other is not place and other.row is not None and below(other.root, place.root.rstrip("/"))
    ]


def _settings(options: Options) -> dict[str, Any]:
    return {"exclude": list(options.exclude), "labels": options.labels}


def _extent(source: sources.Source) -> tuple[int, str]:
    """Sorts wide folders before narrow ones and single files."""
    return len(os.path.normpath(os.path.join(source.root, source.within)).split(os.sep)), source.root


def _covers(wide: sources.Source, narrow: sources.Source) -> bool:
    if not isinstance(wide, sources.FolderSource) or not isinstance(narrow, sources.FolderSource):
        return (wide.kind, wide.root) == (narrow.kind, narrow.root)
    return below(*(os.path.join(source.root, source.within).rstrip("/") for source in (narrow, wide)))


def _compare(reader: Reader, place: Place, source: sources.Source, options: Options, summary: Summary) -> Plan:
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
            if entry.problem != sources.GONE:  # it may be readable again tomorrow
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


def _held(reader: Reader, place: Place, within: str) -> tuple[dict[str, Item], set[str]]:
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
    source: sources.Source, entries: Sequence[sources.Entry], place: Place, options: Options
) -> list[str | None]:
    """The label of each entry, by the rule asked for or else by that recorded for the source."""
    rule = options.labels if options.labels != "auto" else place.options.get("labels", "auto")
    if rule == "none":
        return [None] * len(entries)
    if source.labelled:
        return [entry.label for entry in entries]
    return [None if label is None else text(label) for label in sources.folder_labels(entries, rule == "folder")]


def below(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies below it; everything lies below ""."""
    return not folder or path == folder or path.startswith(folder + "/")
