"""Makes text safe for terminals: names, labels and messages may come from a stranger and hold escape sequences."""

from __future__ import annotations

import unicodedata

_JOINERS = "\u200c\u200d"
"""Zero-width joiner and non-joiner, which occur in emojis and in words of some languages and are harmless."""


def printable(text: str) -> str:
    """Returns a text with escapes in place of characters that could change a terminal's state or the order of text.

    Those are control characters, line breaks, marks of writing direction, bytes that are not UTF-8, and all other
    characters that `str.isprintable` rejects, except spaces and zero-width joiners.
    """
    return text if text.isprintable() else "".join(map(_escaped, text))


def printable_lines(text: str) -> str:
    """Returns a text of several lines, each escaped by `printable`; the line breaks stay."""
    return "\n".join(map(printable, text.split("\n")))


def _escaped(c: str) -> str:
    if c.isprintable() or c in _JOINERS or unicodedata.category(c) == "Zs":
        return c
    if 0xDC80 <= ord(c) <= 0xDCFF:  # a byte that os.fsdecode could not decode
        return f"\\x{ord(c) - 0xDC00:02x}"
    return c.encode("unicode_escape").decode()
