"""The HTTP handlers for duplicates: listing and ignoring groups, cleaning up, and undoing clean-ups."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from simsearch.curation.cleanup import ignored
from simsearch.curation.cleanup.journal import ACTIONS
from simsearch.curation.cleanup.keep import KeepRule
from simsearch.curation.cleanup.plan import Plan, make_plan, reason_to_stay
from simsearch.engine import Engine
from simsearch.errors import ItemNotFoundError
from simsearch.search import duplicates as near
from simsearch.server import uploads
from simsearch.server.clean_ups import Run
from simsearch.server.cleanup_schemas import CleanUpRequest, IgnoreRequest, Rule, UndoRequest
from simsearch.server.errors import reply
from simsearch.server.items import check_writable, values_of
from simsearch.server.middleware import ApiError
from simsearch.server.near_groups import Found, Group, Job
from simsearch.server.reloading import ReloadableIndex
from simsearch.server.request_body import read_json
from simsearch.server.service import SearchService
from simsearch.storage.index import Index

PATIENCE, RUN_PATIENCE, STEP = 1.0, 10.0, 0.02
"""Seconds to wait for groups, and for a clean-up, before answering with the progress; seconds between two checks."""

SHOWN = 200
"""The most items of a group that are listed."""

_UPLOADED = "it was uploaded to this service, which removes it by DELETE"
_GONE = "its file is gone or has changed, or it is another name of a file that stays"
_CHANGED = "the groups have changed since they were listed; list them again"


@dataclass(frozen=True)
class GroupsRequest:
    """A request for a page of at most `limit` groups. `rule` chooses the item to keep in each group.

    after: the value of `next` on the previous page; None for the first page. distance: see `GroupFinder.find`.
    """

    limit: int
    after: str | None
    distance: float | None
    rule: Rule


@dataclass(frozen=True)
class _Chosen:
    """The plan of a clean-up. left: (id, path, reason) of each item that was to be moved but cannot be."""

    plan: Plan
    left: list[tuple[int, str, str]]


class Duplicates:
    """Lists duplicates, cleans them up, and undoes clean-ups."""

    def __init__(self, service: SearchService) -> None:
        self.service = service

    # -- groups

    async def listed(self, request: Request, wanted: GroupsRequest) -> Response:
        """Answers with a page of groups, or with the progress while the groups are being found."""
        served = self.service.index(request)
        finder = self.service.finder
        found = await self.service.in_thread(lambda: finder.find(served, wanted.distance))
        if isinstance(found, Job):
            await _wait(found.result, PATIENCE)
            if not found.result.done():
                return reply({"done": found.done, "total": found.total}, 202, {"retry-after": "1"})
            found = found.result.result()
        ready = found
        return reply(await self.service.in_thread(lambda: served.run(lambda engine: self._page(engine, ready, wanted))))

    def _page(self, engine: Engine, found: Found, wanted: GroupsRequest) -> dict[str, Any]:
        is_ignored = ignored.matcher(engine.opened_index)
        groups = [group for group in found.groups if not is_ignored(group.contents)]
        start = 0
        if wanted.after is not None:
            size, number = map(int, wanted.after.split("."))
            start = next((n for n, group in enumerate(groups) if group.place > (-size, number)), len(groups))
        rest = groups[start : start + wanted.limit]
        shown = [values for group in rest if (values := self._group(engine, found, group, wanted.rule))]
        last = rest[-1] if start + len(rest) < len(groups) else None
        return {
            "groups": shown,
            "total": len(groups),
            "items": sum(len(group.numbers) for group in groups),
            "next": None if last is None else f"{len(last.numbers)}.{last.numbers[0]}",
            "max_distance": found.limit.distance,
            "copies": found.limit.copies,
            "complete": found.complete,
            "keep": wanted.rule,
        }

    def _group(self, engine: Engine, found: Found, group: Group, rule: Rule) -> dict[str, Any] | None:
        """Returns the JSON fields of a group; None if fewer than two of its pictures are left."""
        members = near.members_now(engine.snapshots, group.numbers[:SHOWN], KeepRule(rule))
        if len(members) < 2:
            return None
        members = near.compared_with_first(members, found.limit, found.copies, self.service.finder.allowance)
        kept = KeepRule(rule)([members[0]]) is not None
        return {
            "group": group.name,
            "size": len(group.numbers),
            "items": [
                {
                    **values_of(member.item, self._path(member)),
                    "distance": member.distance,
                    "keep": kept and not place,
                    "is_copy": member.is_near(found.limit.distance),
                    "fixed": _reason_to_stay(engine, member) or None,
                }
                for place, member in enumerate(members)
            ],
        }

    def _path(self, member: near.Member) -> str:
        return member.item.path if self.service.settings.relative else member.path

    async def ignore(self, request: Request) -> Response:
        """Marks groups as not duplicates, or removes the marks."""
        check_writable(self.service, "")
        served = self.service.index(request)
        wanted = await read_json(request, IgnoreRequest)

        def change() -> None:
            found = self._known(served, wanted.max_distance)
            groups = [_named(found, name) for name in wanted.groups]
            served.run_once(
                lambda engine: ignored.change(engine.opened_index, [g.contents for g in groups], wanted.ignored)
            )

        await self.service.in_thread(change)
        return reply({"groups": wanted.groups, "ignored": wanted.ignored})

    # -- cleaning up

    async def clean_up(self, request: Request) -> Response:
        """Moves away the pictures that the request names; for a dry run, only answers with the plan."""
        self._check_allowed("GET, HEAD")
        served = self.service.index(request)
        wanted = await read_json(request, CleanUpRequest)
        action = self.service.settings.cleanup
        if wanted.action not in (None, action):
            hint = "`serve --move-to DIR` moves them" if action == "trash" else "without --move-to, it does"
            raise ApiError(422, "bad_argument", f"this service does not {wanted.action} duplicates; {hint}")
        if wanted.dry_run:
            return reply(await self.service.in_thread(lambda: self._dry_run(served, wanted)))
        run = self.service.clean_ups.start(
            lambda run: served.run_once(lambda engine: self._clean_up(served, engine, wanted, run)),
            self.service.clean_ups.new_name(),
        )
        return await _answer(run)

    def _dry_run(self, served: ReloadableIndex, wanted: CleanUpRequest) -> dict[str, Any]:
        chosen = served.run(lambda engine: self._plan(served, engine, wanted))
        return {
            **self._values(chosen),
            "dry_run": True,
            "files": chosen.plan.count,
            "bytes": chosen.plan.size,
            "removed": 0,
            "journal": None,
            "command": None,
        }

    def _clean_up(self, served: ReloadableIndex, engine: Engine, wanted: CleanUpRequest, run: Run) -> dict[str, Any]:
        chosen: list[_Chosen] = []

        def make() -> Plan:
            chosen.append(self._plan(served, engine, wanted))
            return chosen[0].plan

        report, gone, removed = self.service.clean_ups.act(engine, make, run)
        return {
            **self._values(chosen[0], (gone, dict(report.problems))),
            "dry_run": False,
            "files": report.files,
            "bytes": report.bytes,
            "removed": removed,
            "journal": run.journal if report.journal else None,
            "command": self.service.clean_ups.command(engine, run.journal) if report.journal else None,
        }

    def _plan(self, served: ReloadableIndex, engine: Engine, wanted: CleanUpRequest) -> _Chosen:
        """Returns the plan for a request. Raises ApiError if a group in the request has changed since it was listed."""
        settings = self.service.settings
        found = self._known(served, wanted.max_distance)
        groups: list[list[near.Member]] = []
        left: list[tuple[int, str, str]] = []
        for choice in wanted.groups:
            group = _named(found, choice.group)
            _check_current(engine, group)
            if not set(choice.keep) | set(choice.go) <= set(group.numbers):
                raise ApiError(422, "bad_argument", f"group {group.name} does not have all of these items")
            there = {m.item.id: m for m in near.members_now(engine.snapshots, [*choice.keep, *choice.go])}
            kept = [there[number] for number in choice.keep if number in there]
            going = []
            for number in choice.go:
                member = there.get(number)
                reason = _GONE if member is None else "" if kept else "the picture to keep is gone or has changed"
                if member is not None and not reason:
                    reason = _reason_to_stay(engine, member)
                if member is None or reason:
                    left.append((number, "" if member is None else self._path(member), reason))
                else:
                    going.append(member)
            if going:
                allowance = self.service.finder.allowance
                nearest = near.by_nearest(engine.snapshots, kept, going, found.limit, allowance)
                groups += [each for each in nearest if len(each) > 1]
        plan = make_plan(
            groups, KeepRule("largest"), settings.cleanup or "", found.limit.distance, settings.move_to or ""
        )
        return _Chosen(plan, left)

    def _values(self, chosen: _Chosen, outcome: tuple[set[str], dict[str, str]] | None = None) -> dict[str, Any]:
        """Returns the JSON fields that the answers of a dry run and of a clean-up have in common.

        outcome: for a clean-up, the paths of the moved files, and a dict from paths to reasons why files were left.
        """
        settings = self.service.settings
        items = []
        for group in chosen.plan.groups:
            for decision in group:
                action, reason, target = decision.action, decision.reason, decision.target
                path = os.path.abspath(decision.member.path)
                if outcome and action in ACTIONS and path not in outcome[0]:
                    action, reason, target = "leave", outcome[1].get(path, "the run ended before it"), ""
                items.append(
                    {
                        "id": decision.member.item.id,
                        "path": self._path(decision.member),
                        "action": action,
                        "reason": reason or None,
                        "target": None if settings.relative else target or None,
                    }
                )
        items += [
            {"id": number, "path": path or None, "action": "leave", "reason": reason, "target": None}
            for number, path, reason in chosen.left
        ]
        return {"action": settings.cleanup, "items": items}

    async def clean_ups(self, request: Request) -> Response:
        """Answers with the last clean-ups."""
        served = self.service.index(request)
        settings, clean_ups = self.service.settings, self.service.clean_ups

        def listing(engine: Engine) -> list[dict[str, Any]]:
            if settings.cleanup is None:
                return []
            return [
                {**entry, "command": clean_ups.command(engine, entry["journal"])} for entry in clean_ups.listing(engine)
            ]

        found = await self.service.in_thread(lambda: served.run(listing))
        return reply({"action": settings.cleanup, "clean_ups": found})

    async def restore(self, request: Request) -> Response:
        """Undoes a clean-up."""
        self._check_allowed("")
        served = self.service.index(request)
        wanted = await read_json(request, UndoRequest)
        await self.service.in_thread(
            lambda: served.run(lambda engine: self.service.clean_ups.path(engine, wanted.journal))
        )

        def restore(engine: Engine, run: Run) -> dict[str, Any]:
            result, indexed = self.service.clean_ups.restore(engine, wanted.journal, run)
            self.service.finder.forget(engine)
            return {
                "journal": wanted.journal,
                "files": result.files,
                "untouched": result.untouched,
                "indexed": indexed,
                "problems": [{"path": path, "reason": reason} for path, reason in result.problems],
            }

        run = self.service.clean_ups.start(
            lambda run: served.run_once(lambda engine: restore(engine, run)), wanted.journal
        )
        return await _answer(run)

    # -- checks

    def _check_allowed(self, allowed: str) -> None:
        """Raises ApiError if the service may not move files. allowed: the Allow header of the error."""
        if self.service.settings.cleanup is None:
            message = "this service moves no files; `simsearch serve --writable --allow-cleanup` does"
            raise ApiError(405, "cleanup_off", message, {"allow": allowed})

    def _known(self, served: ReloadableIndex, distance: float | None) -> Found:
        """Returns the groups for `distance` (`GroupFinder.known`). Raises ApiError if they must be computed first."""
        found = self.service.finder.known(served, distance)
        if found is None:
            raise ApiError(409, "groups_changed", _CHANGED)
        return found


def _named(found: Found, name: str) -> Group:
    group = found.group(name)
    if group is None:
        raise ApiError(409, "groups_changed", _CHANGED)
    return group


def _check_current(engine: Engine, group: Group) -> None:
    """Raises ApiError if an item of a group has been removed from the index or has changed."""
    with engine.reading() as reader:
        try:
            if Group.of(reader.item(number) for number in group.numbers).name == group.name:
                return
        except ItemNotFoundError:
            pass
    raise ApiError(409, "groups_changed", _CHANGED)


def _reason_to_stay(engine: Engine, member: near.Member) -> str:
    """Returns the reason why this service must not move a member's file; an empty text if it may be moved."""
    opened = engine.opened_index
    if isinstance(opened, Index) and member.source.root == uploads.manifest_path(engine):
        return _UPLOADED
    return reason_to_stay(member)


async def _answer(run: Run) -> Response:
    """Answers with the result of a run, or with its progress."""
    await _wait(run.result, RUN_PATIENCE)
    if not run.result.done():
        values = {"journal": run.journal, "done": run.done, "total": run.total}
        return reply(values, 202, {"retry-after": "1"})
    return reply(run.result.result())


async def _wait(result: Any, seconds: float) -> None:
    end = asyncio.get_running_loop().time() + seconds
    while not result.done() and asyncio.get_running_loop().time() < end:
        await asyncio.sleep(STEP)
