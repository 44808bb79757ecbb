"""Item ids as text: `id:N`."""

from __future__ import annotations

ID_PREFIX = "id:"
"""Distinguishes an id from a path."""


def parse_id(name: str) -> int | None:
    """Returns the id in `id:N` or a bare N; None for any other name."""
    digits = name.removeprefix(ID_PREFIX)
    return int(digits) if digits.isdecimal() else None
