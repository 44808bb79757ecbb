"""The items that a user's words stand for."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from simsearch.errors import UsageError
from simsearch.images.sources import base
from simsearch.images.sources.resolve import Sources

if TYPE_CHECKING:
    from simsearch.storage.protocols import ItemReader
    from simsearch.storage.reader import Item

Name = str | int | np.integer | os.PathLike[str]
"""What stands for items: an id, `id:N`, a path, a folder, an archive, or a glob."""

SINGLE = (str, int, np.integer, os.PathLike)
"""One name; anything else is several."""


def find_items(names: Name | Iterable[Name], reader: ItemReader, opened: Sources) -> list[Item]:
    """The items that names mean, by id. Raises UsageError for one in vain, ItemNotFoundError."""
    found: dict[int, Item] = {}
    rest: list[str] = []
    for given in [names] if isinstance(names, SINGLE) else names:
        name = int(given) if isinstance(given, int | np.integer) else os.fspath(given)
        if isinstance(name, int) or name.removeprefix("id:").isdecimal():
            number = name if isinstance(name, int) else int(name.removeprefix("id:"))
            found[number] = reader.item(number)
        else:
            rest.append(name)
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
                raise UsageError(f"no item of the index matches {name!r}", hint="a path, id:N, or a glob in quotes")
    return [found[number] for number in sorted(found)]


def matcher(name: str) -> Callable[[str, str], bool]:
    """Whether a name (a path, a folder, an archive or a glob) means an item, given as printed and as stored."""
    if not name:
        raise UsageError("an empty name means no item", hint="a path, id:N, or a glob in quotes")
    full = os.path.abspath(os.path.expanduser(name))
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
