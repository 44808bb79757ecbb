"""The output of `duplicates`: the groups, as tables or in a format for programs, and the lines below them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from simsearch.cli.console import echo, echo_data, echo_ready, pluralize, show_path
from simsearch.common.printable import printable
from simsearch.curation.cleanup import keep
from simsearch.curation.cleanup.plan import Decision, Plan
from simsearch.reports import text
from simsearch.search import duplicates as near
from simsearch.search.copy_threshold import Threshold

Groups = list[list[near.Member]]


def summary(groups: Groups, limit: Threshold) -> str:
    """Returns the text to print below the groups: their number, and the largest distance between near-identical images.

    A second line gives, for each kind of change (such as a crop), the percentage of copies with this change that are
    found. It is left out if this was not measured.
    limit: the threshold with which the groups were found.
    """
    apart = f"at most {limit.farthest:.4g}"
    items = pluralize(sum(map(len, groups)), "item")
    if groups:
        found = f"{pluralize(len(groups), 'group')} of {items}; each is {apart} from another one of its group"
        found += ", and their pixels agree" if limit.reach else ""
    elif limit.reach:
        found = f"0 groups; no two images {apart} apart have pixels that agree"
    else:
        found = f"0 groups; no two images are {apart} apart"
    if any(member.distance > limit.farthest for group in groups for member in group):
        found += ". The listed distances are those to the first of the group, so some are larger"
    if not limit.copies:
        return found
    shares = "; ".join(f"{_name_of_change(name)}: {100 * share:.0f}" for name, share in limit.copies.items())
    return f"{found}\npercentage of changed copies found: {shares}"


def _name_of_change(name: str) -> str:
    """Returns the name of a change in `perturb.COPIES` as it is printed: "scaled to 75 %, JPEG of quality 60"."""
    return name.replace("JPEG ", "JPEG of quality ")


def print_groups(groups: Groups, plan: Plan | None, form: str) -> None:
    decided = plan.groups if plan else [[Decision(member, "") for member in group] for group in groups]
    listed = [_entries(group, plan is not None) for group in decided]
    if form == "json":
        echo(json.dumps(listed, indent=1))
    elif form == "jsonl":
        for entries in listed:
            echo(json.dumps(entries))
    elif form == "csv":
        headings = ["group", "id", "path", "label", "distance", *(_PLANNED if plan else ()), "keep"]
        numbered = [(number, entry) for number, entries in enumerate(listed, 1) for entry in entries]
        cells = [[number, *{**entry, "keep": str(entry["keep"]).lower()}.values()] for number, entry in numbered]
        echo_data(text.to_csv([headings, *cells]), nl=False)
    elif form == "paths":
        for group in decided:
            for decision in group if plan else group[1:]:
                if decision.action not in ("keep", "leave"):
                    echo_data(decision.member.path)
    else:
        for number, group in enumerate(decided, 1):
            rows = [("distance", "id", "label", "path"), *(_row(decision) for decision in group)]
            if plan:
                actions = ["action", *(decision.action for decision in group)]
                rows = [(*row[:2], action, *row[2:]) for row, action in zip(rows, actions, strict=True)]
            lines = text.table(rows, right=2, last=str)
            echo_ready("\n".join([f"group {number}: {pluralize(len(group), 'item')}", *lines, ""]))


_PLANNED = ("action", "reason", "target")


def _entries(group: Sequence[Decision], planned: bool) -> list[dict[str, Any]]:
    """Returns a dict of JSON values for each member of a group, to be read by programs.

    The value of "keep" is True for the members that `--keep` keeps; without `--keep`, for the largest image.
    planned: True if the decisions are those of `--keep`.
    """
    largest = keep.KeepRule("largest")([decision.member for decision in group])
    entries = []
    for place, decision in enumerate(group):
        member = decision.member
        values = {
            "id": member.item.id if member.own else None,
            "path": member.path,
            "label": member.item.label,
            "distance": member.distance,
        }
        decided = {name: getattr(decision, name) for name in _PLANNED} if planned else {}
        stays = decision.action == "keep" if planned else place == largest
        entries.append({**values, **decided, "keep": stays})
    return entries


def _row(decision: Decision) -> tuple[str, ...]:
    member = decision.member
    path = show_path(member.path) + (f" ({printable(decision.reason)})" if decision.reason else "")
    path += f" -> {show_path(decision.target)}" if decision.target else ""
    number = str(member.item.id) if member.own else "-"
    return text.format_distance(member.distance), number, member.item.label or "-", path
