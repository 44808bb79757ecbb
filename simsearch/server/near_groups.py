"""Finds the groups of near-identical items in an index, once for each state of the index, in a thread of its own.

Finding the groups of a large index takes seconds to minutes. So a request starts the work and is answered with the
progress, and the thread pauses while searches are being answered. If items have only been removed since the last
comparison, the groups are updated without comparing all items again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from simsearch.common.progress import Progress, no_progress
from simsearch.curation.cleanup.keep import KeepRule
from simsearch.engine import Engine
from simsearch.search import duplicates as near
from simsearch.search.copy_threshold import Threshold, copy_threshold
from simsearch.search.near_rows import EXACT, JoinedRows, linked
from simsearch.search.second_look import Allowance
from simsearch.server.background import BackgroundWork, Key
from simsearch.server.middleware import ApiError
from simsearch.server.reloading import ReloadableIndex

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.storage.protocols import ItemReader
    from simsearch.storage.reader import Item

LINKED = 1000
"""A group that lost items is updated if at most LINKED items are left; with more, all groups are computed again."""

LOOKED = 64
"""The limit used instead of LINKED if pictures are also compared by their pixels, which takes longer."""

DEFAULT_RULE = "largest"
"""Groups are computed with this rule for the picture to keep. For another rule, their pictures are compared again."""

KEPT = 4
"""The most results kept in memory, for all indexes and distances together."""

WAITING = 3
"""The most results being computed or waiting; further requests get status 429."""

SECONDS = 900.0
"""The most seconds for computing one result."""

ITEM_BYTES = 700
"""Bytes of memory for each item that is compared."""

CALIBRATION_PIXELS = 16_000_000
"""Only pictures with at most this many pixels are copied to measure the threshold."""

PATIENCE = 10
"""A result is used for PATIENCE times the seconds that it took to compute, even if items are added meanwhile."""

DRIFT = 0.25
"""A measured threshold is used until the number of items has changed by this fraction."""


@dataclass(frozen=True)
class Group:
    """A group of near-identical items.

    numbers: the ids of the items, ascending. contents: the SHA-256 of their files, sorted.
    name: a hash of the ids and contents. A group that changes gets another name, so that a client cannot act on a group
    that has changed since it was listed.
    """

    name: str
    numbers: tuple[int, ...]
    contents: tuple[str, ...]

    @classmethod
    def of(cls, items: Iterable[Item]) -> Group:
        """Returns the group that consists of these items."""
        pairs = sorted((item.id, item.digest.hex()) for item in items)
        name = hashlib.sha256(repr(pairs).encode()).hexdigest()[:32]
        return cls(name, tuple(number for number, _ in pairs), tuple(sorted(digest for _, digest in pairs)))

    @property
    def place(self) -> tuple[int, int]:
        """The sort key of a group: the largest group first, then by the lowest id."""
        return -len(self.numbers), self.numbers[0]


@dataclass(frozen=True)
class Found:
    """The groups of one state of an index.

    ids, rows: the ids and rows of all items at that time, both (n,), sorted by id.
    limit: the threshold of the comparison.
    complete: False if not all pairs were compared. seconds: the duration of the comparison. at: the monotonic time at
    the end of the comparison.
    copies: for each pair of items whose pixels have been compared so far, True if they are copies. A key is (kept id,
    other id): the item of a group that a rule keeps, and another item of the group.
    """

    generation: int
    ids: NDArray[np.int64]
    rows: NDArray[np.int64]
    groups: tuple[Group, ...]
    limit: Threshold
    complete: bool
    seconds: float
    at: float
    copies: dict[tuple[int, int], bool] = field(default_factory=dict, compare=False, repr=False)

    def group(self, name: str) -> Group | None:
        """Returns the group with this name; None if there is none."""
        return next((group for group in self.groups if group.name == name), None)


@dataclass
class Job:
    """A waiting or running search for groups.

    done: the number of items compared so far. total: the number of all items. Both are 0 while the threshold is
    measured.
    """

    done: int = 0
    total: int = 0
    result: Future[Found] = field(default_factory=Future)


class GroupFinder:
    """Finds groups; safe for several threads.

    memory: bytes for the comparison. busy: returns True while searches are being answered; the comparison then pauses.
    allowance: limits of memory and pixels for reading the pictures of near pairs.
    """

    def __init__(
        self, memory: int, busy: Callable[[], bool] = lambda: False, allowance: Allowance | None = None
    ) -> None:
        self._memory, self.allowance = memory, allowance
        self._work: BackgroundWork[Job, Found] = BackgroundWork("duplicates", KEPT, busy)
        self._limits: dict[Key, tuple[int, Threshold]] = {}
        self.stop, self.close = self._work.stop, self._work.close

    def find(self, served: ReloadableIndex, distance: float | None) -> Found | Job:
        """Returns the groups if they are known, else the job that computes them.

        Groups of an earlier state of the index are used if items have only been removed since, or if the groups were
        computed a short time ago (see `PATIENCE`).
        distance: the largest distance between two linked items; None for a threshold that is measured with changed
        copies of pictures of the index (see `copy_threshold`).
        Raises ApiError if too many jobs are under way.
        """
        key, found = served.run(lambda engine: self._look_up(engine, distance))
        if found is not None:
            return found
        refusal = "duplicates are being looked for already, with other distances"
        return self._work.start(
            key,
            Job(),
            lambda job: served.run(lambda engine: self._compute(engine, distance, job)),
            WAITING,
            refusal,
        )

    def known(self, served: ReloadableIndex, distance: float | None) -> Found | None:
        """Returns the same groups as `find`, but None if the groups must be computed again."""
        return served.run(lambda engine: self._look_up(engine, distance))[1]

    def forget(self, engine: Engine) -> None:
        """Drops the known groups of an index; called after items have been restored."""
        self._work.drop(lambda key: key[1] == str(engine.path))

    def _look_up(self, engine: Engine, distance: float | None) -> tuple[Key, Found | None]:
        key = engine.opened_index.identity, str(engine.path), distance
        found = self._work.known(key)
        if found is None:
            return key, None
        with engine.reading() as reader:
            if reader.state("generation") == found.generation:
                return key, found
            after = _without_gone(engine, reader, found, self.allowance)
        if after is None:
            recent = time.monotonic() - found.at < PATIENCE * found.seconds
            return key, found if recent else None
        self._work.keep(key, after)
        return key, after

    def _compute(self, engine: Engine, distance: float | None, job: Job) -> Found:
        began = time.monotonic()

        def progress(done: int, total: int) -> None:
            job.done, job.total = done, total
            text = f"comparing took more than {SECONDS:.0f} s; `simsearch duplicates` has no such limit"
            self._work.step(began, SECONDS, text)

        with engine.reading() as reader:
            generation = reader.state("generation")
            ids, rows = reader.ids_and_rows()
        if len(ids) * ITEM_BYTES > self._memory:
            text = f"{len(ids):,} items need more memory than this service has; `simsearch duplicates` compares them"
            raise ApiError(503, "too_large", text, {"retry-after": "600"})
        limit = (
            self._limit(engine, len(ids), lambda done, total: progress(0, 0))
            if distance is None
            else Threshold(distance)
        )
        compared_from = time.monotonic()
        progress(0, len(ids))
        found = near.duplicate_groups(
            engine.snapshots, limit, progress, keep=KeepRule(DEFAULT_RULE), allowance=self.allowance
        )
        copies = {
            (group[0].item.id, member.item.id): member.is_copy
            for group in found
            for member in group
            if member.is_copy is not None
        }
        groups = tuple(Group.of(member.item for member in group) for group in found)
        end = time.monotonic()
        complete = len(ids) <= EXACT
        return Found(generation, ids, rows, groups, limit, complete, end - compared_from, end, copies)

    def _limit(self, engine: Engine, count: int, progress: Progress) -> Threshold:
        """Returns the measured threshold. Measures again if the number of items has changed by more than `DRIFT`.

        count: the present number of items.
        """
        key = engine.opened_index.identity, str(engine.path)
        then, limit = self._limits.get(key, (0, Threshold(0.0)))
        if not then or abs(count - then) > DRIFT * then:
            limit = copy_threshold(engine.opened_index, engine.model, progress=progress, largest=CALIBRATION_PIXELS)
            self._limits = {key: (count, limit)} if len(self._limits) > KEPT else {**self._limits, key: (count, limit)}
        return limit


def _without_gone(engine: Engine, reader: ItemReader, found: Found, allowance: Allowance | None) -> Found | None:
    """Returns `found` without the items that were removed from the index since.

    Returns None if all groups must be computed again. This is so if items were added or changed, or if a group that
    lost items is too large to be updated.
    allowance: see `GroupFinder`.
    """
    ids, rows = reader.ids_and_rows()
    places = np.searchsorted(found.ids, ids)
    if len(ids) and (places[-1] == len(found.ids) or (found.ids[places] != ids).any()):
        return None
    if (found.rows[places] != rows).any():
        return None
    there = set(np.intersect1d(ids, [number for group in found.groups for number in group.numbers]).tolist())
    groups: list[Group] = []
    for group in found.groups:
        left = [number for number in group.numbers if number in there]
        if len(left) == len(group.numbers):
            groups.append(group)
        elif len(left) > (LOOKED if found.limit.reach else LINKED):
            return None
        elif len(left) > 1:
            groups += _linked_still(engine, reader, left, found.limit, allowance)
    groups.sort(key=lambda group: group.place)
    return replace(found, generation=reader.state("generation"), ids=ids, rows=rows, groups=tuple(groups))


def _linked_still(
    engine: Engine, reader: ItemReader, numbers: Sequence[int], limit: Threshold, allowance: Allowance | None
) -> list[Group]:
    """Returns the groups that the remaining items of a group form after a removal of items: none, one or several.

    numbers: the ids of the remaining items. limit: the threshold. allowance: see `GroupFinder`.
    """
    items = [reader.item(number) for number in numbers]
    rows = np.array([item.row for item in items], np.int64)
    snapshot = engine.snapshots.current(reader)
    members = [near.Member(item, item.path, 0.0, snapshot.sources[item.source]) for item in items]
    reach = limit.farthest
    look = near.second_look(members, limit, allowance)
    roots = linked(JoinedRows([snapshot.flat]), rows, reach, no_progress, True, look)
    parts = [np.flatnonzero(roots == root) for root in np.unique(roots)]
    return [Group.of(items[place] for place in part) for part in parts if len(part) > 1]
