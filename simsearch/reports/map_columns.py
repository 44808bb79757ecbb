"""The columns by which the items of a map are coloured and searched: clusters, labels, metadata, paths.

In the shapes of arrays, n is the number of items.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common.printable import printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

CATEGORIES, FIELDS = 1000, 12
"""Largest number of categories of a metadata field in a map, and largest number of metadata fields.

Text fields with more categories are left out; for fewer than 2,000 items, the limit is lower (`most` in `columns`).
Labels take the place of a metadata field: without labels, a map can have FIELDS + 1 metadata fields.
"""

NONE = 0xFFFF
"""The code of items that have no category."""


@dataclass(frozen=True)
class Categories:
    """A column of categories.

    codes: (n,) uint16, the position of each item's category in `names`, or `NONE`. names: the categories, as printable
    text.
    """

    codes: NDArray[np.uint16]
    names: Sequence[str]


@dataclass(frozen=True)
class Numbers:
    """A column of numbers. values: (n,) float32, NaN for a missing value."""

    values: NDArray[np.float32]


def columns(
    clusters: NDArray[np.int32],
    cluster_names: Sequence[str],
    labels: Sequence[str | None],
    metadata: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[str, Categories | Numbers]]:
    """Yields the name and the values of each column: first the clusters, then the labels, if any, then metadata fields.

    clusters: (n,), the position of each item's cluster in `cluster_names`. labels, metadata: one for each item.
    """
    yield "cluster", Categories(clusters.astype("<u2"), list(map(printable, cluster_names)))
    count = 1
    if (found := categories(labels, CATEGORIES * 60)) is not None:
        yield "label", found
        count += 1
    most = min(CATEGORIES, max(12, len(labels) // 2))  # if most values differ, they are names
    for name in list(dict.fromkeys(key for each in metadata for key in each))[: 4 * FIELDS]:
        values = [each.get(name) for each in metadata]
        column = numbers(values) or categories(values, most)
        if column is not None and count < FIELDS + 2:
            yield printable(name), column
            count += 1


def numbers(values: Sequence[Any]) -> Numbers | None:
    """Returns a column of numbers; None if a value is not a number.

    Also returns None if there are at most 12 different numbers, because `columns` then shows them as categories.
    """
    known = [value for value in values if value is not None]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return None
    if len(set(known)) <= 12:
        return None
    with np.errstate(over="ignore"):
        flat = np.array([np.nan if value is None else float(value) for value in values]).astype("<f4")
    return Numbers(np.where(np.isinf(flat), np.nan, flat).astype("<f4"))


def categories(values: Sequence[Any], most: int) -> Categories | None:
    """Returns a column of categories, the most frequent first.

    Returns None if there are no values, or more than `most` different values.
    """
    texts = [None if value is None else str(value) for value in values]
    counts = Counter(text for text in texts if text is not None)
    if not counts or len(counts) > min(most, NONE):
        return None
    names = [name for name, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))]
    place = {name: number for number, name in enumerate(names)}
    codes = np.array([NONE if text is None else place[text] for text in texts], "<u2")
    return Categories(codes, list(map(printable, names)))


def common_folder(paths: Sequence[str]) -> str:
    """Returns the longest text ending in "/" with which all paths start. The map's page stores this text only once.

    Returns "" if there is no such text or fewer than two paths.
    """
    if len(paths) < 2:
        return ""
    first, last = min(paths), max(paths)
    same = next((at for at in range(len(first)) if first[at : at + 1] != last[at : at + 1]), len(first))
    return first[: first.rfind("/", 0, same) + 1]
