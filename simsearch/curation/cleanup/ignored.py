"""Groups that the user has marked as not being duplicates, stored in `ignored.json` of the index.

A group is stored as the SHA-256 digests of its files, so that it is recognised after files were moved or the index was
rebuilt in the same folder. A group that has gained a picture is shown again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from simsearch.common import outside_json
from simsearch.errors import IndexDamagedError, UsageError
from simsearch.search.duplicates import Member
from simsearch.storage.folder import error_for
from simsearch.storage.index import on_disk

if TYPE_CHECKING:
    from simsearch.storage.protocols import OpenIndex

FILE = "ignored.json"

Groups = list[list[Member]]


def without_ignored(index: OpenIndex, groups: Groups) -> Groups:
    """Returns the groups that are not ignored.

    A group is ignored if all of its files are in the same group of `ignored.json`.
    Raises IndexDamagedError if `ignored.json` is damaged.
    """
    is_ignored = matcher(index)
    return [group for group in groups if not is_ignored(contents(group))]


def matcher(index: OpenIndex) -> Callable[[Sequence[str]], bool]:
    """Reads `ignored.json` and returns a function that returns True if a group is ignored.

    The returned function takes the digests of a group's files, as the function `contents` returns them. A group is
    ignored if all of its files are in the same group of `ignored.json`.
    `matcher` raises IndexDamagedError if `ignored.json` is damaged.
    """
    known: dict[str, list[Counter[str]]] = {}
    for digests in _read(index):
        group = Counter(digests)
        for digest in group:
            known.setdefault(digest, []).append(group)

    def is_ignored(found: Sequence[str]) -> bool:
        near = known.get(found[0], ())
        return bool(near) and any(Counter(found) <= each for each in near)

    return is_ignored


def ignore(index: OpenIndex, groups: Iterable[Sequence[Member]]) -> None:
    """Marks groups as not being duplicates.

    Raises IndexLockedError if another process is writing to the index, IndexDamagedError if `ignored.json` is damaged,
    and UsageError if `ignored.json` cannot be written or if the index is not on disk.
    """
    change(index, [contents(group) for group in groups], True)


def change(index: OpenIndex, groups: Iterable[Sequence[str]], ignored: bool) -> None:
    """Marks groups as not being duplicates, or removes that mark if `ignored` is False.

    groups: for each group, the digests that the function `contents` returns. Raises the same errors as `ignore`.
    """
    opened = on_disk(index)
    changed = [sorted(group) for group in groups]
    with opened.writing(patience=5):
        known = [group for group in _read(index) if sorted(group) not in changed] + (changed if ignored else [])
        try:
            opened.folder.write(FILE, (json.dumps({"ignored": known}, indent=1) + "\n").encode())
        except OSError as error:
            raise UsageError(f"{opened.path / FILE} cannot be written: {error.strerror}") from error


def contents(group: Iterable[Member]) -> list[str]:
    """Returns the sorted SHA-256 digests of the members' files, in hexadecimal."""
    return sorted(member.item.digest.hex() for member in group)


def _read(index: OpenIndex) -> list[list[str]]:
    folder = index.folder
    if folder is None or not folder.exists(FILE):
        return []
    place = f"{index.path}/{FILE}"
    try:
        groups = outside_json.parse(folder.read(FILE, outside_json.LIMIT))["ignored"]
        if not all(isinstance(group, list) and all(isinstance(each, str) for each in group) for group in groups):
            raise ValueError("it does not contain lists of checksums")
    except OSError as error:
        raise error_for(place, error) from error
    except (KeyError, TypeError, ValueError) as error:
        raise IndexDamagedError(f"{place} cannot be read: {error}") from error
    found: list[list[str]] = groups
    return found
