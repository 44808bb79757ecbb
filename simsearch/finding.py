"""The items that a user's words stand for."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from simsearch.errors import UsageError
from simsearch.snapshot import Sources, matcher

if TYPE_CHECKING:
    from simsearch.store import Item, Reader

Name = str | int | np.integer | os.PathLike[str]
"""What stands for items: an id, `id:N`, a path, a folder, an archive, or a glob."""

SINGLE = (str, int, np.integer, os.PathLike)
"""One name; anything else is several."""


def find(names: Name | Iterable[Name], reader: Reader, opened: Sources) -> list[Item]:
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
