"""Finds the current locations of an index's sources, which may have moved since they were recorded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from simsearch.errors import UsageError
from simsearch.images.sources.remote import addresses, permission

if TYPE_CHECKING:
    from simsearch.storage.reader import SourceRow


def check(roots: Mapping[str, str], known: Sequence[SourceRow]) -> None:
    """Checks the current locations that the caller gives for sources, and permits reading locations on other machines.

    An index may come from a stranger, so simsearch reads its sources on other machines only with permission. A caller
    who gives a location on another machine permits reading it.
    roots: a mapping from recorded roots to current locations, for the sources that have moved. If there is only one
    source, the key may be "". known: all recorded sources.
    Raises UsageError if a key is not a recorded root, if the key is "" but there are several sources, or if there is no
    file or folder at a location. If both the recorded root of a source and its current location are on other machines,
    the location is not checked.
    """
    hint = f"its sources: {', '.join(row.root for row in known)}"
    for old, new in roots.items():
        if old and old not in {row.root for row in known}:
            raise UsageError(f"the index has no source {old}", hint=hint)
        if not old and len(known) > 1:
            raise UsageError(f"the index has {len(known)} sources: use OLD=NEW instead of {new}", hint=hint)
        if addresses.is_remote(new) and all(addresses.is_kind(row.kind) for row in known if old in {"", row.root}):
            permission.grant(addresses.normalized(new))  # the user permits access by giving this location
        elif not os.path.exists(new):
            raise UsageError(f"no file or folder at {new}")


def may_exist(kind: str, root: str) -> bool:
    """Returns True if the root of a source exists.

    Data sets of torchvision and sources on other machines are not checked; for them, the result is always True.
    """
    return kind == "dataset" or addresses.is_kind(kind) or os.path.exists(root)


def location_of(row: SourceRow, roots: Mapping[str, str], index: Path) -> str:
    """Returns the current location of a source.

    If `roots` has a location for the source, returns this location. Otherwise returns the recorded root, with one
    exception: `roots` is empty and the recorded root no longer exists. Then the source may have been moved together
    with the index, so its recorded path relative to the index is returned if something exists at that path.
    roots: see `check`. index: the path of the index.
    """
    if roots:
        return roots.get(row.root, roots.get("", row.root))
    if os.path.isabs(row.root) and not os.path.exists(row.root):
        moved = os.path.normpath(os.path.join(index.absolute(), row.relative))
        return moved if os.path.exists(moved) else row.root
    return row.root
