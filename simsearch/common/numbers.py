"""Numbers in texts: which ones are values, and which are names that only look like numbers."""

from __future__ import annotations

import decimal
import re

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?")
_DIGITS = 400
"""The longest text that is looked at."""


def written_number(text: str) -> int | float | None:
    """Returns the number that a text writes in full: 7, -1.5, 0.0001; None for 007, 1.50, 12E4 and 1_000.

    Writing it again gives the same text, so nothing is lost.
    """
    if len(text) > _DIGITS or not _NUMBER.fullmatch(text):
        return None
    if "." not in text:
        return int(text) if text != "-0" else None
    number = float(text)
    return number if str(number) == text or format(decimal.Decimal(str(number)), "f") == text else None


def stored_integer(number: int) -> int | str:
    """Returns an integer as metadata keeps it: as text if it has more than the 64 bits of SQLite's integers."""
    return number if -(2**63) <= number < 2**63 else str(number)
