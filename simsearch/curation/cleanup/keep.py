"""Rules that choose the picture of a group that stays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from simsearch.errors import UsageError
from simsearch.images.sources.recorded import is_inside
from simsearch.search.duplicates import Member
from simsearch.storage.reader import EARLIEST

RULES = ("largest", "oldest", "newest", "shortest-path", "under:DIR", "against")

FILE_KINDS = ("folder", "manifest")
"""Kinds of sources whose items are files of their own."""

_UNDER = "under:"


def is_file(member: Member) -> bool:
    """Returns True if a member is a file of its own: not in an archive or a table, and not a link."""
    return member.source.kind in FILE_KINDS and not os.path.islink(member.path)


@dataclass(frozen=True)
class KeepRule:
    """A rule that is called with the members of a group. name: from RULES, or "under:". folder: DIR of `under:DIR`."""

    name: str
    folder: str = ""

    @classmethod
    def parse(cls, text: str, against: bool = False) -> KeepRule:
        """Parses a rule from the value of an option. Raises UsageError.

        against: True if there is another index to compare with, so that the rule "against" is valid.
        """
        if text.startswith(_UNDER):
            folder = os.path.expanduser(text.removeprefix(_UNDER))
            if not folder or not os.path.isdir(folder):
                raise UsageError(f"there is no folder {folder!r} to keep pictures under", hint="under:DIR")
            return cls(_UNDER, folder)
        if text not in RULES or text == "under:DIR":
            raise UsageError(f"{text!r} is no rule of what to keep", hint=", ".join(RULES))
        if text == "against" and not against:
            raise UsageError("there is nothing to keep pictures against", hint="name it: --against INDEX|FOLDER")
        return cls(text)

    def __call__(self, members: Sequence[Member]) -> int | None:
        """Returns the position of the member to keep; None if no member meets the rule.

        Files are preferred to pictures in archives, except to those of the other index, and links are never chosen. Of
        equally good members the first is chosen.
        """
        places = [place for place, member in enumerate(members) if self.permits(member)]
        if any(is_file(members[place]) for place in places):
            places = [place for place in places if is_file(members[place]) or not members[place].own]
        return min(places, key=lambda place: (*self._rank(members[place]), place)) if places else None

    def permits(self, member: Member) -> bool:
        """Returns True if the rule may keep a member."""
        if member.source.kind in FILE_KINDS and not is_file(member):
            return False
        if self.name == _UNDER:
            return self.is_under(member)
        return self.name != "against" or not member.own

    def is_under(self, member: Member) -> bool:
        """Returns True if the rule is `under:DIR` and the member lies in that folder, where every member is kept."""
        return self.name == _UNDER and member.source.kind in FILE_KINDS and is_inside(member.path, self.folder)

    def _rank(self, member: Member) -> tuple[Any, ...]:
        """Returns the sort key of a member; the member with the smallest key is kept."""
        item = member.item
        if self.name in ("oldest", "newest"):
            return item.stamp < EARLIEST, item.stamp if self.name == "oldest" else -item.stamp
        if self.name == "shortest-path":
            return len(member.path), member.path
        return -item.width * item.height, -item.size
