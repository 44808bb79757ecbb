"""Rules that choose which picture of a group of duplicates is kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from simsearch.common import suggestions
from simsearch.errors import UsageError
from simsearch.images.sources.recorded import is_inside
from simsearch.search.duplicates import Member
from simsearch.storage.reader import EARLIEST

RULES = ("largest", "oldest", "newest", "shortest-path", "under:DIR", "against")
"""The values of the option `--keep`."""

FILE_KINDS = ("folder", "manifest")
"""Kinds of sources in which every picture is a separate file, unlike archives and tables."""

_UNDER = "under:"


def is_file(member: Member) -> bool:
    """Returns True if a member is a separate file: not in an archive or a table, and not a link."""
    return member.source.kind in FILE_KINDS and not os.path.islink(member.path)


@dataclass(frozen=True)
class KeepRule:
    """A rule that chooses the picture to keep when it is called with the members of a group.

    name: one of RULES, or "under:" for a rule `under:DIR`. folder: the DIR of such a rule.
    """

    name: str
    folder: str = ""

    @classmethod
    def parse(cls, text: str, against: bool = False) -> KeepRule:
        """Returns the rule for a value of the option `--keep`. Raises UsageError.

        against: True if the user's index is compared with another one. If False, the rule "against", which keeps the
        pictures of the other index, raises UsageError.
        """
        if text.startswith(_UNDER):
            folder = os.path.expanduser(text.removeprefix(_UNDER))
            if not folder or not os.path.isdir(folder):
                raise UsageError(
                    f"there is no folder {folder!r}", hint="under:DIR keeps the pictures in the folder DIR"
                )
            return cls(_UNDER, folder)
        if text not in RULES or text == "under:DIR":
            raise UsageError(f"there is no rule {text!r} for the picture to keep", hint=suggestions.hint(text, RULES))
        if text == "against" and not against:
            raise UsageError(
                "the rule 'against' needs another index", hint="against=ENGINE", shell_hint="--against INDEX|FOLDER"
            )
        return cls(text)

    def __call__(self, members: Sequence[Member]) -> int | None:
        """Returns the position in `members` of the member to keep; None if the rule permits none of them.

        A link is never chosen. A picture in an archive or a table is chosen only if the rule permits no separate file.
        This does not apply to pictures of another index that the user's index is compared with: they are chosen like
        separate files. Of equally good members, the first is chosen.
        """
        places = [place for place, member in enumerate(members) if self.permits(member)]
        if any(is_file(members[place]) for place in places):
            places = [place for place in places if is_file(members[place]) or not members[place].own]
        return min(places, key=lambda place: (*self._rank(members[place]), place)) if places else None

    def permits(self, member: Member) -> bool:
        """Returns True if the rule allows `member` to be the one to keep."""
        if member.source.kind in FILE_KINDS and not is_file(member):
            return False
        if self.name == _UNDER:
            return self.is_under(member)
        return self.name != "against" or not member.own

    def is_under(self, member: Member) -> bool:
        """Returns True if the rule is `under:DIR` and the member is a file below DIR; all such members are kept."""
        return self.name == _UNDER and member.source.kind in FILE_KINDS and is_inside(member.path, self.folder)

    def _rank(self, member: Member) -> tuple[Any, ...]:
        """Returns the sort key of a member; the member with the smallest key is kept."""
        item = member.item
        if self.name in ("oldest", "newest"):
            return item.stamp < EARLIEST, item.stamp if self.name == "oldest" else -item.stamp
        if self.name == "shortest-path":
            return len(member.path), member.path
        return -item.width * item.height, -item.size
