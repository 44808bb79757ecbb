"""Decides what a clean-up does with each picture of each group of duplicates. No file is changed here."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from simsearch.curation.cleanup.acts import OTHER_BYTES, Task
from simsearch.curation.cleanup.files import Original
from simsearch.curation.cleanup.journal import ACTIONS
from simsearch.curation.cleanup.keep import FILE_KINDS, KeepRule, is_file
from simsearch.errors import UsageError
from simsearch.images.sources.recorded import is_inside
from simsearch.images.sources.remote import addresses
from simsearch.search.duplicates import Member


@dataclass(frozen=True)
class Decision:
    """The decision about a member of a group.

    action: "keep"; "leave" for a member that is left as it is, for a `reason`; one of `journal.ACTIONS`; or "copy" for
    a duplicate that stays because the user asked for no action.
    reason: the reason for "leave"; else "". target: the new path for a move; else "".
    """

    member: Member
    action: str
    reason: str = ""
    target: str = ""


@dataclass(frozen=True)
class Plan:
    """The decisions about the members of each group.

    action: one of `journal.ACTIONS`, or "" if none was asked for.
    groups: the decisions of each group, the kept member first.
    into: the folder that files are moved to; "" for other actions.
    """

    action: str
    groups: list[list[Decision]]
    into: str = ""

    def tasks(self) -> Iterator[Task]:
        """Yields a task for each file to act on."""
        for group in self.groups:
            original = _original(group[0].member)
            for decision in group:
                if decision.action in ACTIONS:
                    member = decision.member
                    path = os.path.abspath(member.path)
                    yield Task(path, member.item.digest, original, decision.target, self.into)

    @property
    def count(self) -> int:
        """The number of files to act on."""
        return sum(decision.action in ACTIONS for group in self.groups for decision in group)

    @property
    def size(self) -> int:
        """The total size in bytes of the files to act on."""
        return sum(d.member.item.size for group in self.groups for d in group if d.action in ACTIONS)


@dataclass
class _Targets:
    """Chooses free paths for files that are moved to a folder."""

    into: str
    taken: set[str] = field(default_factory=set)

    def path(self, member: Member) -> str:
        stem, suffix = os.path.splitext(os.path.join(self.into, _relative(member)))
        place, number = stem + suffix, 1
        while place.casefold() in self.taken or os.path.lexists(place):
            number += 1
            place = f"{stem}-{number}{suffix}"
        self.taken.add(place.casefold())
        return place


def make_plan(
    groups: Sequence[Sequence[Member]], rule: KeepRule, action: str, limit: float, into: str | os.PathLike[str] = ""
) -> Plan:
    """Returns the decisions about the members of each group.

    groups: the result of `duplicate_groups(..., keep=rule)`, where the first member of each group is the one to keep.
    action: one of `journal.ACTIONS`, or "" to only choose the member to keep.
    limit: the largest distance from the kept picture at which a member is acted on. If the pixels of the two pictures
    were compared, the result of that comparison decides, and not the distance (`Member.is_near`).
    into: the folder that files are moved to.
    Raises UsageError if a moved file would lie in a source, where the next build would find it.
    """
    folder = os.path.abspath(into) if into else ""
    targets = _Targets(folder)
    plan = Plan(action, [_decide(group, rule, action, limit, targets) for group in groups], folder)
    if action == "move":
        _check_target(plan, groups)
    return plan


def _decide(group: Sequence[Member], rule: KeepRule, action: str, limit: float, targets: _Targets) -> list[Decision]:
    if rule([group[0]]) is None:  # no member meets the rule
        return [Decision(member, "leave", "the group has no picture to keep") for member in group]
    decisions = [Decision(group[0], "keep")]
    for member in group[1:]:
        if not member.own or rule.is_under(member):
            decisions.append(Decision(member, "keep"))
        elif reason := _reason_to_leave(member, group[0], action, limit):
            decisions.append(Decision(member, "leave", reason))
        elif not action:
            decisions.append(Decision(member, "copy"))
        else:
            target = targets.path(member) if action == "move" else ""
            decisions.append(Decision(member, action, target=target))
    return decisions


def _reason_to_leave(member: Member, kept: Member, action: str, limit: float) -> str:
    """Returns the reason for doing nothing with a member; "" if there is none."""
    if reason := reason_to_stay(member):
        return reason
    if not member.is_near(limit):
        return "it is near another picture of the group, but not near the one to keep"
    if action == "hardlink" and kept.item.digest != member.item.digest:
        return OTHER_BYTES
    return ""


def reason_to_stay(member: Member) -> str:
    """Returns the reason why a member can never be acted on, whichever picture is kept; "" if there is none."""
    if addresses.is_kind(member.source.kind):
        return "it is on another machine"
    if member.source.kind not in FILE_KINDS:
        return "it is in an archive or a table"
    if not is_file(member):
        return "it is a link"
    if not member.source.outside and not is_inside(member.path, member.source.folder or ""):
        return "it lies outside its source"
    return ""


def _original(member: Member) -> Original:
    if member.source.kind in FILE_KINDS:
        return Original(os.path.abspath(member.path), member.item.digest)
    return Original(member.path, member.item.digest, member.source, member.item.path)


def _relative(member: Member) -> str:
    """Returns a member's path relative to its source, without the parts ".." and "/"."""
    parts = [part for part in PurePath(member.item.path).parts if part not in ("..", "/", "//")]
    return os.path.join(*parts)


def _check_target(plan: Plan, groups: Sequence[Sequence[Member]]) -> None:
    """Raises UsageError if a file would move to a place in a source, where the next build would find it.

    groups: the members of the groups. Their sources are the folders to check.
    """
    folders = {m.source.folder or "" for group in groups for m in group if m.own and m.source.kind == "folder"}
    for group in plan.groups:
        for decision in group:
            if decision.target:
                check_not_listed(decision.target, folders)


def check_not_listed(path: str, folders: Iterable[str]) -> None:
    """Raises UsageError if a build from one of the folders would find a file at `path`."""
    for folder in folders:
        if _lists(folder, path):
            raise UsageError(
                f"{path} would lie inside the source {folder}, where the next build finds it again",
                hint="choose a folder outside of the sources, or a hidden one",
            )


def _lists(folder: str, path: str) -> bool:
    """Returns True if a build from `folder` would find a file at `path`.

    It finds a file that lies in the folder, unless the file is hidden or lies in a hidden subfolder.
    """
    if not is_inside(path, folder):
        return False
    return not any(part.startswith(".") for part in PurePath(os.path.relpath(path, folder)).parts)
