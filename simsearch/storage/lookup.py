"""Finds items by id, path, folder, archive or glob."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from simsearch.common.item_ids import parse_id
from simsearch.errors import UsageError
from simsearch.images.sources import base
from simsearch.images.sources.remote.addresses import is_remote
from simsearch.images.sources.resolve import Sources

if TYPE_CHECKING:
    from simsearch.storage.protocols import ItemReader
    from simsearch.storage.reader import Item

Name = str | int | np.integer | os.PathLike[str]
"""Identifies items: an id, `id:N`, a path, a folder, an archive, or a glob."""

_NAMES = "use a path, id:N, or a glob in quotes"

SINGLE = (str, int, np.integer, os.PathLike)
"""The types of a single name; other types are collections of names."""


def find_items(names: Name | Iterable[Name], reader: ItemReader, opened: Sources) -> list[Item]:
    """Returns the items that match at least one of the names, sorted by id.

    opened: the sources of the index; the keys are their numbers.
    Raises UsageError if a name matches no item, and ItemNotFoundError for an unknown id.
    """
    found: dict[int, Item] = {}
    rest: list[str] = []
    if isinstance(names, bytes):
        names = os.fsdecode(names)
    if not isinstance(names, SINGLE) and not isinstance(names, Iterable):
        raise UsageError(f"{names!r} cannot name an item", hint=_NAMES)
    for given in [names] if isinstance(names, SINGLE) else names:
        if not isinstance(given, SINGLE) or isinstance(given, bool):
            raise UsageError(f"{given!r} cannot name an item", hint=_NAMES)
        name = int(given) if isinstance(given, int | np.integer) else os.fsdecode(given)
        number = name if isinstance(name, int) else parse_id(name)
        if number is not None:
            found[number] = reader.item(number)
        else:
            rest.append(str(name))
    if rest:
        hits = dict.fromkeys(rest, 0)
        tests = [(name, matcher(name)) for name in rest]
        for item in reader.items():
            shown = opened[item.source].display(item.path)
            for name, test in tests:
                if test(shown, item.path):
                    found[item.id] = item
                    hits[name] += 1
        for name, count in hits.items():
            if not count:
                raise UsageError(f"no item of the index matches {name!r}", hint=_NAMES)
    return [found[number] for number in sorted(found)]


def matcher(name: str) -> Callable[[str, str], bool]:
    """Returns a function that returns True if `name` matches an item.

    The function takes two paths of the item: the full path, and the stored path, which is relative to the item's
    source.
    name: a path, a folder, an archive or a glob. Raises UsageError if it is empty.
    """
    if not name:
        raise UsageError("an empty name matches no item", hint=_NAMES)
    full = name.rstrip("/") if is_remote(name) else os.path.abspath(os.path.expanduser(name))
    inside = full + os.sep, full + base.SEPARATOR

    def plain(shown: str, relative: str) -> bool:
        return name in {shown, relative} or shown == full or shown.startswith(inside)

    if not glob.has_magic(name) or os.path.exists(name):
        return plain
    return lambda shown, relative: (
        plain(shown, relative)
        or fnmatch.fnmatchcase(shown, name)
        or fnmatch.fnmatchcase(relative, name)
        or fnmatch.fnmatchcase(shown, full)
    )
