"""Current locations of an index's sources: as recorded, moved with the index, or given by the caller."""

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
    """Checks that each key is a recorded root (or "" for the only one) and each value an existing path.

    Raises UsageError.
    """
    hint = f"its sources: {', '.join(row.root for row in known)}"
    for old, new in roots.items():
        if old and old not in {row.root for row in known}:
            raise UsageError(f"the index has no source {old}", hint=hint)
        if not old and len(known) > 1:
            raise UsageError(f"{new} is ambiguous, the index has {len(known)} sources: use OLD=NEW", hint=hint)
        if addresses.is_remote(new) and all(addresses.is_kind(row.kind) for row in known if old in {"", row.root}):
            permission.grant(addresses.normalized(new))  # the user permits access by giving this location
        elif not os.path.exists(new):
            raise UsageError(f"no file or folder at {new}")


def may_exist(kind: str, root: str) -> bool:
    """Returns False if the root of a source is gone; data sets and remote sources are assumed to exist."""
    return kind == "dataset" or addresses.is_kind(kind) or os.path.exists(root)


def location_of(row: SourceRow, roots: Mapping[str, str], index: Path) -> str:
    """Returns the location of a source: the one in `roots`, the recorded one, or one that moved with the index."""
    if roots:
        return roots.get(row.root, roots.get("", row.root))
    if os.path.isabs(row.root) and not os.path.exists(row.root):
        moved = os.path.normpath(os.path.join(index.absolute(), row.relative))
        return moved if os.path.exists(moved) else row.root
    return row.root
