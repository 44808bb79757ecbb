"""Ids of items as texts: `id:N`."""

from __future__ import annotations

ID_PREFIX = "id:"
"""Marks an id where a name could also be a path."""


def parse_id(name: str) -> int | None:
    """Returns the id in `id:N` or a bare N; None for any other name."""
    digits = name.removeprefix(ID_PREFIX)
    return int(digits) if digits.isdecimal() else None
