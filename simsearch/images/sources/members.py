"""Turns the names of an archive's members into the paths of its images. No path on disk is made from these names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")

MOST_LINKS = 40
"""The most symbolic links that are followed for one member; Linux has the same limit."""

_ODD = re.compile(r"[\\\0]|//|^/|/$|(^|/)\.\.?(/|$)|^[A-Za-z]:/")
"""Matches the names that `member_path` has to change."""

_DRIVE = re.compile(r"[A-Za-z]:")


def member_path(name: str) -> str:
    """Returns the path of a member without `.`, `..`, a root, a drive or backslashes.

    For example, the path of ./a, ../a, /a and C:\\a is a.
    """
    if name and not _ODD.search(name):
        return name
    parts: list[str] = []
    for part in name.replace("\0", "\ufffd").replace("\\", "/").split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in {"", "."}:
            parts.append(part)
    while len(parts) > 1 and _DRIVE.fullmatch(parts[0]):
        del parts[0]
    return "/".join(parts) or "unnamed"


def by_path(members: Iterable[tuple[str, T]]) -> dict[str, T]:
    """Returns a dict from path to member of an archive; `member_path` makes the paths from the members' names.

    members: pairs of a name and a member. If a name occurs several times, its last member is used. If different names
    give the same path, a number is added to the path.
    """
    named = dict(members)
    paths = {name: member_path(name) for name in named}
    exact = {name for name, path in paths.items() if name == path}
    found: dict[str, T] = {}
    for name, member in named.items():
        path = paths[name]
        if path != name and (path in exact or path in found):
            start, dot, end = path.rpartition(".")
            start, end = (start, dot + end) if dot and "/" not in end else (path, "")
            count = 2
            while (path := f"{start} ({count}){end}") in exact or path in found:
                count += 1
        found[path] = member
    return found


def is_hidden(path: str) -> bool:
    """Returns True for paths of hidden members, and of members in `__MACOSX`, a folder that macOS adds to archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


def link_target(path: str, links: Mapping[str, str]) -> str | None:
    """Returns the path that `path` leads to if all symbolic links are followed; None if it leaves the archive or loops.

    links: maps the path of each symbolic link in the archive to the target that is written in the link.
    """
    pending, done, followed = path.split("/")[::-1], list[str](), 0
    while pending:
        part = pending.pop()
        if part == "..":
            if not done:
                return None
            done.pop()
        elif part not in {"", "."}:
            done.append(part)
            link = links.get("/".join(done))
            if link is not None:
                followed += 1
                link = link.replace("\\", "/")
                if followed > MOST_LINKS or link.startswith("/") or _DRIVE.match(link):
                    return None
                done.pop()
                pending += link.split("/")[::-1]
    return "/".join(done)
