"""Distinguishes texts that are numbers from texts that only look like numbers, such as the name 007."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?")
_EXACT = 15
"""Number of significant decimal digits that are never lost when a text is converted to a float."""

_DIGITS = 400
"""Largest length of a text that is read as a number, in characters."""


def written_number(text: str) -> int | float | None:
    """Returns the number that a text stands for; None if it is not a number written in the usual way.

    7, -1.5 and 0.0001 are numbers; 007, 1.50, 12E4 and 1_000 are not.
    """
    if len(text) > _DIGITS or not _NUMBER.fullmatch(text):
        return None
    if "." not in text:
        return int(text) if text != "-0" else None
    number, shortest = float(text), not text.endswith("0") or text.endswith(".0")
    exact = len(text.lstrip("-0.").replace(".", "")) <= _EXACT  # also 0.00001, which Python writes as 1e-05
    return number if str(number) == text or (shortest and exact) else None


def stored_integer(number: int) -> int | str:
    """Returns an integer as it is stored in metadata: unchanged, or as text if SQLite's 64 bits cannot hold it."""
    return number if -(2**63) <= number < 2**63 else str(number)
