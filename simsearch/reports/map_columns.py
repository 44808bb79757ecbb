"""The columns by which the items of a map are coloured and searched: clusters, labels, metadata, paths.

Letters: n items.
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
"""Most values of a field to colour by, and most fields. Fields with more values, if not numbers, are names."""

NONE = 0xFFFF
"""The category of items that have none."""


@dataclass(frozen=True)
class Categories:
    """codes: (n,) uint16, places in names, or `NONE`. names: without unprintable characters."""

    codes: NDArray[np.uint16]
    names: Sequence[str]


@dataclass(frozen=True)
class Numbers:
    """values: (n,) float32, NaN for none."""

    values: NDArray[np.float32]


def columns(
    clusters: NDArray[np.int32],
    cluster_names: Sequence[str],
    labels: Sequence[str | None],
    metadata: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[str, Categories | Numbers]]:
    """Yields the fields by name: the cluster first, then the label, if there are any, and fields of the metadata.

    clusters: (n,) places in `cluster_names`. labels, metadata: of each item.
    """
    yield "cluster", Categories(clusters.astype("<u2"), list(map(printable, cluster_names)))
    count = 1
    if (found := categories(labels, CATEGORIES * 60)) is not None:
        yield "label", found
        count += 1
    most = min(CATEGORIES, max(12, len(labels) // 2))  # where most items differ, the values are names
    for name in list(dict.fromkeys(key for each in metadata for key in each))[: 4 * FIELDS]:
        values = [each.get(name) for each in metadata]
        column = numbers(values) or categories(values, most)
        if column is not None and count < FIELDS + 2:
            yield printable(name), column
            count += 1


def numbers(values: Sequence[Any]) -> Numbers | None:
    """Returns values as numbers; None if some value is none, or there are so few different ones that they are kinds."""
    known = [value for value in values if value is not None]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return None
    if len(set(known)) <= 12:
        return None
    with np.errstate(over="ignore"):
        flat = np.array([np.nan if value is None else float(value) for value in values]).astype("<f4")
    return Numbers(np.where(np.isinf(flat), np.nan, flat).astype("<f4"))


def categories(values: Sequence[Any], most: int) -> Categories | None:
    """Returns values as kinds, the most frequent first; None if there are none, or more than `most`."""
    texts = [None if value is None else str(value) for value in values]
    counts = Counter(text for text in texts if text is not None)
    if not counts or len(counts) > min(most, NONE):
        return None
    names = [name for name, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))]
    place = {name: number for number, name in enumerate(names)}
    codes = np.array([NONE if text is None else place[text] for text in texts], "<u2")
    return Categories(codes, list(map(printable, names)))


def common_folder(paths: Sequence[str]) -> str:
    """Returns the start of all paths up to a "/", which the page holds once; "" for none."""
    if len(paths) < 2:
        return ""
    first, last = min(paths), max(paths)
    same = next((at for at in range(len(first)) if first[at : at + 1] != last[at : at + 1]), len(first))
    return first[: first.rfind("/", 0, same) + 1]
