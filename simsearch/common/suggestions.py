"""Hints about mistyped names."""

from __future__ import annotations

from collections.abc import Sequence


def nearest(name: str, known: Sequence[str]) -> str | None:
    """Returns the known name most similar to a mistyped one, ignoring case; None if no name is similar."""
    import difflib  # errors are rare, and at the top the import would slow down every start

    lower = {each.lower(): each for each in reversed(known)}
    found = difflib.get_close_matches(name.lower(), lower, 1, cutoff=0.7)
    if not found:  # short names with letters in another order: dgo, dog
        found = [each for each in lower if len(each) > 2 and sorted(each) == sorted(name.lower())]
    return lower[found[0]] if found else None


def hint(name: str, known: Sequence[str]) -> str:
    """Returns the hint for an error about an unknown name: the most similar known name, or all if none is similar."""
    found = nearest(name, known)
    return f"did you mean {found}?" if found else f"one of {', '.join(known)}"
