"""Finds the conditions that no item meets, and suggests the values that were probably meant."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from simsearch.common import suggestions
from simsearch.storage.filters import NUMBERS, Condition

if TYPE_CHECKING:
    from simsearch.storage.protocols import ItemReader

COMPARED = 1000
"""Maximum number of a field's values with which a mistyped value is compared; the most frequent values are taken."""

CHECKED = 8
"""Maximum number of values, of all conditions together, that are looked up; each takes one pass over the items."""

SHOWN = 10
"""Maximum number of values of a field that a sentence lists."""


def unmet(
    reader: ItemReader, wanted: Iterable[Condition], counts: Callable[[str], Mapping[str, int]] | None = None
) -> list[str]:
    """Returns a sentence about each condition that no item meets, with the values that the field has.

    For example "no item meets label=dgo; did you mean label=dog?". A condition with several values is looked up once
    for each value. Only the first CHECKED values of all conditions together are looked up.
    counts: a function that returns the most frequent values of a field with their numbers of items; None to use
    `reader.value_counts`.
    Raises UsageError for a field that no item has.
    """
    counts = counts or (lambda field: reader.value_counts(field, COMPARED))
    singles = (replace(condition, values=(value,)) for condition in wanted for value in condition.values)
    return [
        f"no item meets {single}" + _values_meant(single, counts)
        for single in itertools.islice(singles, CHECKED)
        if next(iter(reader.items(conditions=[single])), None) is None
    ]


def _values_meant(condition: Condition, counts: Callable[[str], Mapping[str, int]]) -> str:
    """Returns the end of the sentence: the most similar value, or the most frequent ones; empty if there are none."""
    if condition.operator not in ("=", "~") or condition.field in (*NUMBERS, "path"):
        return ""
    known = list(counts(condition.field))
    near = suggestions.nearest(str(condition.values[0]), known) if condition.operator == "=" else None
    if near is not None:
        return f"; did you mean {condition.field}={near}?"
    if not known:
        return ""
    name = "labels" if condition.field == "label" else f"values of {condition.field}"
    return f"; the {name} are {', '.join(known[:SHOWN])}" + (", ..." if len(known) > SHOWN else "")
