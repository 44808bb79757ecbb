"""Finds groups of near-identical items: different files whose features are near (`simsearch.search.near_rows`).

Two items are near-identical if their distance is at most a threshold. If the threshold was measured (`copy_threshold`),
pairs up to a slightly larger distance are compared, and their pixels decide instead (`second_look`).
In a large index, not all pairs are compared; `checked` estimates how many near pairs are found. Groups can span two
indexes of the same model: the index to clean up, and another index to compare it with.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from simsearch.common.progress import Progress, no_progress
from simsearch.errors import ImageError, ItemNotFoundError, UsageError
from simsearch.images import decode
from simsearch.images.sources import recorded
from simsearch.search.copy_threshold import Threshold
from simsearch.search.near_rows import JUDGED, JoinedRows, Judge, linked
from simsearch.search.second_look import Allowance, SecondLook

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.images.sources.base import Source
    from simsearch.storage.protocols import ItemReader, Searchable, SearchSnapshot
    from simsearch.storage.reader import Item

CHECKED, CHECKED_NEIGHBOURS = 256, 8
"""`checked` searches for at most CHECKED_NEIGHBOURS neighbours of each of CHECKED random items."""


@dataclass(frozen=True)
class Member:
    """An item of a group of near-identical items.

    distance: from the group's first item: the one that a rule (`Keep`) chooses, or else the one with the lowest id.
    own: False for an item of the other index, if two indexes are compared.
    is_copy: True for a copy of the first item; False for a picture linked to it only through other members; None if the
    pixels were not compared.
    """

    item: Item
    path: str
    distance: float
    source: Source = field(repr=False, compare=False)
    own: bool = True
    is_copy: bool | None = None

    def is_near(self, limit: float) -> bool:
        """Returns True if this member is near-identical to the group's first item, not only to other members.

        If the pixels of the two were compared, `is_copy` decides. Otherwise, their distance must be at most `limit`.
        """
        return self.distance <= limit if self.is_copy is None else self.is_copy


Keep = Callable[[Sequence[Member]], int | None]
"""A rule that takes the members of a group and returns the place of the one to keep; None if none meets the rule."""


def thumbnail(member: Member, shorter_side: int = 256) -> Image.Image | None:
    """Returns a member's picture as an RGB image; None if it cannot be read. shorter_side: see `Engine.thumbnail`."""
    item = member.item
    try:
        with recorded.open_recorded(member.source, item.path, item.digest, decodes=False) as file:
            return decode.decode_image(file, shorter_side).image
    except ImageError:
        return None


def duplicate_groups(
    snapshots: Searchable,
    max_distance: float | Threshold,
    progress: Progress = no_progress,
    exact: bool = False,
    *,
    against: Searchable | None = None,
    keep: Keep | None = None,
    allowance: Allowance | None = None,
) -> list[list[Member]]:
    """Groups near-identical items: items that are linked directly or through other items of the group.

    Returns the groups of two or more members, the largest first. The member that `keep` chooses is the first of its
    group; the others are sorted by id. Each member is a different file, so all members but one can be deleted without
    losing a picture. A file with several items (through links or overlapping sources) is one member, if possible under
    a name that is not a link. Files that are gone or have changed are left out. If all files of a group are gone, as
    when a disk is not mounted, all of them stay members.
    max_distance: items at most this far apart are linked. With a `Threshold` whose reach is above 0, an item is only
    compared with its `near_rows.NEAREST` nearest items within the reach. Two such items are linked if their pixels
    agree or, if a picture cannot be read, if they are at most the threshold's distance apart.
    progress: called with the number of items compared so far and the number of all items.
    exact: True to compare all pairs; False to accept missed links among more than `near_rows.EXACT` different items.
    against: another index of the same model. Then only groups with items of both indexes are returned; the other
    index's items come last, unless `keep` puts one first. A file in both indexes counts as an item of the other index.
    keep: the rule that chooses each group's first member; None for the lowest id.
    allowance: the limits for reading pictures; None for the default limits.
    Raises UsageError for an invalid distance.
    """
    limit = max_distance if isinstance(max_distance, Threshold) else Threshold(max_distance)
    if not isinstance(limit.distance, int | float | np.number):
        raise UsageError(f"max_distance is {limit.distance!r}, not a number")
    if not limit.distance >= 0:
        raise UsageError(f"max_distance must be a number that is not negative, not {limit.distance}")
    reach = float(limit.farthest)
    with contextlib.ExitStack() as stack:
        sides = [_Side.of(stack.enter_context(each.reading()), each) for each in (snapshots, against) if each]
        flat = JoinedRows([side.snapshot.flat for side in sides])
        rows = np.concatenate([side.rows + start for side, start in zip(sides, flat.starts, strict=True)])
        ids = np.concatenate([side.ids for side in sides])
        side_of = np.repeat(np.arange(len(sides)), [len(side.ids) for side in sides])

        def item_at(place: int) -> tuple[Item, Source]:
            side = sides[side_of[place]]
            item = side.reader.item(int(ids[place]))
            return item, side.snapshot.sources[item.source]

        look = SecondLook(limit.distance, item_at, allowance) if limit.reach else None
        root = linked(flat, rows, reach, progress, exact, look)
        order = np.argsort(root, kind="stable")
        starts = np.flatnonzero(np.diff(root[order], prepend=-1))
        found = []
        for places in np.split(order, starts[1:]):
            if len(places) < 2:
                continue
            members = [sides[side_of[place]].member(int(ids[place]), not side_of[place]) for place in places]
            kept = _different_files(members)
            members = [members[place] for place in kept]
            if len(members) < 2 or (against and len({member.own for member in members}) < 2):
                continue
            first = keep(members) if keep else None
            found.append(_from_first(members, flat.read(rows[places[kept]]), first or 0, look, places[kept]))
    return sorted(found, key=lambda group: (-len(group), min(member.item.id for member in group if member.own)))


def _from_first(
    members: Sequence[Member],
    features: NDArray[np.float16],
    first: int,
    look: Judge | None = None,
    places: NDArray[np.int64] | None = None,
) -> list[Member]:
    """Moves the member at place `first` to the front; returns the members with their distances from this member.

    features: (n, D), of the members. look: compares pixels to set `is_copy`; None to compare no pixels.
    places: (n,), the number by which `look` knows each member; None if `look` is None.
    """
    near = features.astype(np.float64)
    distances = np.linalg.norm(near - near[first], axis=1)
    copies: list[bool | None] = [None] * len(members)
    if look is not None and places is not None:
        copies = _same_or_copies(distances, look, np.stack([np.full(len(places), places[first]), places], 1))
    facts = zip(members, distances.tolist(), copies, strict=True)
    group = [replace(member, distance=each, is_copy=copy) for member, each, copy in facts]
    group.insert(0, group.pop(first))
    return group


def _same_or_copies(distances: NDArray[np.float64], look: Judge, pairs: NDArray[np.int64]) -> list[bool | None]:
    """Returns True for each pair that has distance 0 or that `look` accepts. pairs: (n, 2) places, as for `look`."""
    copies = distances == 0
    differ = np.flatnonzero(~copies)
    for start in range(0, len(differ), JUDGED):
        some = differ[start : start + JUDGED]
        copies[some] = look(pairs[some], distances[some])
    return list(copies.tolist())


def members_now(snapshots: Searchable, numbers: Iterable[int], keep: Keep | None = None) -> list[Member]:
    """Returns the members of a group in their present state in the index and on disk.

    Like `duplicate_groups`, leaves out items that are no longer in the index, files that are gone or have changed, and
    all names of a file but one.
    numbers: the ids of the group's items.
    keep: the rule that chooses the first member; None for the first of `numbers`.
    """
    with snapshots.reading() as reader:
        snapshot = snapshots.current(reader)
        members = []
        for number in numbers:
            with contextlib.suppress(ItemNotFoundError):
                item = reader.item(number)
                source = snapshot.sources[item.source]
                members.append(Member(item, source.display(item.path), 0.0, source))
        members = [members[place] for place in _different_files(members)]
        if not members:
            return []
        features = snapshot.flat.read(np.array([member.item.row for member in members], np.int64))
        return _from_first(members, features, (keep(members) if keep else None) or 0)


def compared_with_first(
    members: Sequence[Member],
    limit: Threshold,
    known: dict[tuple[int, int], bool] | None = None,
    allowance: Allowance | None = None,
) -> list[Member]:
    """Compares the pixels of each member of a group with those of the first; returns the members with `is_copy` set.

    limit: the threshold. If its `reach` is 0, no pixels are compared, and the members are returned unchanged.
    known: earlier results. The keys are the ids of the first and of another member; new results are added.
    """
    look = second_look(members, limit, allowance)
    if look is None:
        return list(members)
    answers = {} if known is None else known
    keys = [(members[0].item.id, member.item.id) for member in members]
    new = [place for place, key in enumerate(keys) if key not in answers]
    distances = np.array([members[place].distance for place in new], np.float64)
    copies = _same_or_copies(distances, look, np.array([(0, place) for place in new], np.int64).reshape(-1, 2))
    answers.update((keys[place], bool(copy)) for place, copy in zip(new, copies, strict=True))
    return [replace(member, is_copy=answers[key]) for member, key in zip(members, keys, strict=True)]


def by_nearest(
    snapshots: Searchable,
    kept: Sequence[Member],
    others: Sequence[Member],
    limit: Threshold | None = None,
    allowance: Allowance | None = None,
) -> list[list[Member]]:
    """Assigns each of `others` to the nearest of the kept members; returns a group for each kept member.

    A group begins with its kept member. The distances of the other members are set to those from the kept member.
    limit: if its `reach` is above 0, `is_copy` tells if the pixels agree with the kept member's; otherwise it is None.
    """
    with snapshots.reading() as reader:
        flat = snapshots.current(reader).flat
        near, far = (
            flat.read(np.array([member.item.row for member in each], np.int64)).astype(np.float64)
            for each in (kept, others)
        )
    distances = np.stack([np.linalg.norm(far - row, axis=1) for row in near])  # (kept, others)
    groups = [[replace(member, distance=0.0)] for member in kept]
    chosen = distances.argmin(0)
    least = distances[chosen, np.arange(len(others))]
    copies: list[bool | None] = [None] * len(others)
    if limit is not None and (look := second_look([*kept, *others], limit, allowance)):
        copies = _same_or_copies(least, look, np.stack([chosen, len(kept) + np.arange(len(others))], 1))
    for nearest, member, distance, copy in zip(chosen.tolist(), others, least.tolist(), copies, strict=True):
        groups[nearest].append(replace(member, distance=distance, is_copy=copy))
    return groups


def second_look(members: Sequence[Member], limit: Threshold, allowance: Allowance | None = None) -> SecondLook | None:
    """Returns a `SecondLook` that knows each member by its place in the list; None if the reach of `limit` is 0."""
    if not limit.reach:
        return None
    return SecondLook(limit.distance, lambda place: (members[place].item, members[place].source), allowance)


@dataclass(frozen=True)
class _Side:
    """One of the indexes whose items are grouped, with the ids and the feature rows of its items."""

    reader: ItemReader
    snapshot: SearchSnapshot
    ids: NDArray[np.int64]
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, reader: ItemReader, snapshots: Searchable) -> _Side:
        return cls(reader, snapshots.current(reader), *reader.ids_and_rows())

    def member(self, number: int, own: bool) -> Member:
        item = self.reader.item(number)
        source = self.snapshot.sources[item.source]
        return Member(item, source.display(item.path), 0.0, source, own)


def _different_files(members: Sequence[Member]) -> list[int]:
    """Returns one place in `members` for each file, ascending.

    If a file has several names, an item of the second index (if there are two) is preferred, then a name that is not
    a link. Files that are gone or have changed are left out, unless all files are gone (an unmounted disk).
    """
    by_file: dict[Hashable, list[int]] = {}
    gone = 0
    for place, member in enumerate(members):
        file = member.source.identity(member.item.path)
        if file is None:
            gone += 1
        elif _is_unchanged(member.item, member.source):
            by_file.setdefault(file, []).append(place)
    if gone == len(members):
        return list(range(len(members)))

    def rank(place: int) -> tuple[bool, bool]:
        member = members[place]
        return member.own, member.source.is_link(member.item.path)

    return sorted(places[0] if len(places) == 1 else min(places, key=rank) for places in by_file.values())


def _is_unchanged(item: Item, source: Source) -> bool:
    """Returns True if an item's file has the content that was indexed."""
    facts = source.size_and_stamp(item.path)
    if facts is None or facts == (item.size, item.stamp):
        return True
    try:
        return hashlib.sha256(source.read(item.path)).digest() == item.digest
    except ImageError:
        return False


def _file_of(item: Item, sources: Mapping[int, Source]) -> Hashable:
    """Returns a value that is the same for all items of one file; the item's id if its file is gone."""
    return sources[item.source].identity(item.path) or item.id


def checked(
    snapshots: Searchable, found: list[list[Member]], max_distance: float | Threshold, seed: int = 0
) -> tuple[int, int]:
    """Estimates how complete the groups in `found` are, by exact searches for the neighbours of random items.

    Returns the number of near-identical pairs that the searches find, and how many of these pairs are in one group.
    found: the groups of `duplicate_groups` for the same `max_distance`.
    """
    limit = max_distance if isinstance(max_distance, Threshold) else Threshold(max_distance)
    with snapshots.reading() as reader:
        snapshot = snapshots.current(reader)
        flat, sources = snapshot.flat, snapshot.sources
        group = {_file_of(member.item, sources): n for n, members in enumerate(found) for member in members}
        ids, rows = reader.ids_and_rows()
        owner = np.full(flat.rows, -1)
        owner[rows] = ids
        chosen = np.random.default_rng(seed).choice(len(ids), min(CHECKED, len(ids)), replace=False)
        queries = flat.read(rows[chosen]).astype(np.float32)
        near = flat.search(queries, CHECKED_NEIGHBOURS + 1, np.sort(rows))
        pairs: list[tuple[Item, Item, float]] = []
        for number, each in zip(ids[chosen].tolist(), near, strict=True):
            item = reader.item(number)
            for other, distance in zip(owner[each.rows].tolist(), each.distances.tolist(), strict=True):
                if distance <= limit.farthest and other != number:
                    pairs.append((item, reader.item(other), distance))
    pairs = [pair for pair in pairs if _file_of(pair[0], sources) != _file_of(pair[1], sources)]
    if limit.reach and pairs:
        items = [item for pair in pairs for item in pair[:2]]
        look = SecondLook(limit.distance, lambda place: (items[place], sources[items[place].source]))
        places = np.arange(len(items)).reshape(-1, 2)
        copies = _same_or_copies(np.array([distance for *_, distance in pairs]), look, places)
        pairs = [pair for pair, copy in zip(pairs, copies, strict=True) if copy]
    groups = [tuple(group.get(_file_of(item, sources)) for item in pair[:2]) for pair in pairs]
    return len(pairs), sum(a is not None and a == b for a, b in groups)
