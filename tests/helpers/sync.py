"""Reading and changing indexes and images in tests of builds."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from simsearch.indexing import options
from simsearch.storage.database import Database
from simsearch.storage.reader import Item, SourceRow
from tests.helpers.pictures import CLASSES, EACH, draw

ALL = len(CLASSES) * EACH
_ticks = itertools.count(1)


def items(index: Path) -> dict[str, Item]:
    """All items by their stored path."""
    store = Database(index / "items.sqlite")
    with store.reading() as reader:
        found = list(reader.items())
    store.close()
    assert len({item.path for item in found}) == len(found)
    return {item.path: item for item in found}


def ids(index: Path) -> dict[str, int]:
    return {path: item.id for path, item in items(index).items()}


def labels(index: Path) -> dict[str, str | None]:
    return {path: item.label for path, item in items(index).items()}


def sources(index: Path) -> list[SourceRow]:
    store = Database(index / "items.sqlite")
    with store.reading() as reader:
        found = reader.sources()
    store.close()
    return found


def failures(index: Path) -> list[tuple[str, str]]:
    store = Database(index / "items.sqlite")
    with store.reading() as reader:
        found = [(path, reason) for _, path, reason in reader.failures()]
    store.close()
    return found


def touch(path: Path) -> None:
    """Gives a file a time that it never had."""
    facts = path.stat()
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 10**9 * next(_ticks)))


def edit(path: Path, seed: int) -> None:
    draw(path, seed)
    touch(path)


def told(summary: options.Summary) -> dict[str, int]:
    """Returns the counts of a summary that are not 0."""
    names = ("added", "updated", "moved", "removed", "unchanged", "failed", "computed")
    return {name: getattr(summary, name) for name in names if getattr(summary, name)}
