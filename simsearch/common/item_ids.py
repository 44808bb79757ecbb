"""Item ids as text: `id:N`."""

from __future__ import annotations

ID_PREFIX = "id:"
"""Prefix that marks a text as the id of an item and not a path."""


def parse_id(name: str) -> int | None:
    """Returns the number in `id:N` or in a plain N; None for any other text."""
    digits = name.removeprefix(ID_PREFIX)
    return int(digits) if digits.isdecimal() else None
