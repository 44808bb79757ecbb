"""Where an index's sources are: recorded, moved with the index, or as the caller says."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from simsearch.errors import UsageError

if TYPE_CHECKING:
    from simsearch.storage.reader import SourceRow


def check(roots: Mapping[str, str], known: Sequence[SourceRow]) -> None:
    """Each root must name a recorded source (or, as "", the only one) and a place that exists. Raises UsageError."""
    hint = f"its sources: {', '.join(row.root for row in known)}"
    for old, new in roots.items():
        if old and old not in {row.root for row in known}:
            raise UsageError(f"the index has no source {old}", hint=hint)
        if not old and len(known) > 1:
            raise UsageError(f"{new} could stand for {len(known)} sources: write OLD=NEW", hint=hint)
        if not os.path.exists(new):
            raise UsageError(f"no file or folder at {new}")


def of(row: SourceRow, roots: Mapping[str, str], index: Path) -> str:
    """Where a source is: as given by `roots`, where it was, or where it would be had it moved with the index."""
    if roots:
        return roots.get(row.root, roots.get("", row.root))
    if os.path.isabs(row.root) and not os.path.exists(row.root):
        moved = os.path.normpath(os.path.join(index.absolute(), row.relative))
        return moved if os.path.exists(moved) else row.root
    return row.root
