"""The items of an index as Python objects, and as tables of pyarrow and pandas."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.errors import MissingExtraError
from simsearch.storage.filters import Where, conditions

if TYPE_CHECKING:
    from simsearch.storage.protocols import OpenIndex
    from simsearch.storage.reader import Item

_ITEMS = 4096
"""Number of items whose features are read at once."""


@dataclass(frozen=True)
class IndexedItem:
    """One item of an index.

    path: the current path of the image. relative: the path as stored, relative to the root of the image's source.
    width, height: in pixels, of the upright image. bytes: the size of the image file.
    """

    id: int
    path: str
    label: str | None
    metadata: dict[str, Any]
    width: int
    height: int
    bytes: int
    relative: str


def indexed_items(index: OpenIndex, where: Where | None = None) -> Iterator[IndexedItem]:
    """Yields the items that meet the conditions, sorted by id. The items are those of one snapshot of the index.

    where: see `filters.conditions`; None for all items. Raises UsageError for conditions that cannot be used.
    """
    with index.reading() as reader:
        sources = index.sources(reader)
        for item in reader.items(conditions=conditions(where)):
            yield IndexedItem(
                item.id,
                sources[item.source].display(item.path),
                item.label,
                item.metadata,
                item.width,
                item.height,
                item.size,
                item.path,
            )


def items_to_arrow(index: OpenIndex, where: Where | None = None, features: bool = False) -> Any:
    """Returns the items as a pyarrow.Table with a column for each field of `IndexedItem` except `relative`.

    The values of the column `metadata` are JSON texts.
    where: see `filters.conditions`; None for all items.
    features: True to add a column of the stored features, lists of D float16 values.
    Raises UsageError for conditions that cannot be used, and MissingExtraError without pyarrow.
    """
    pyarrow = import_pyarrow("tables of Arrow")
    rows = list(indexed_items(index, where))
    columns = {
        "id": pyarrow.array([row.id for row in rows], pyarrow.int64()),
        "path": pyarrow.array([_valid(row.path) for row in rows], pyarrow.string()),
        "label": pyarrow.array([row.label for row in rows], pyarrow.string()),
        "metadata": pyarrow.array([json.dumps(row.metadata) for row in rows], pyarrow.string()),
        "width": pyarrow.array([row.width for row in rows], pyarrow.int32()),
        "height": pyarrow.array([row.height for row in rows], pyarrow.int32()),
        "bytes": pyarrow.array([row.bytes for row in rows], pyarrow.int64()),
    }
    if features:
        values = _features(index, [row.id for row in rows])
        columns["features"] = pyarrow.FixedSizeListArray.from_arrays(
            pyarrow.array(values.reshape(-1)), index.meta.dimension
        )
    return pyarrow.table(columns)


def import_pyarrow(what: str) -> Any:
    """Imports and returns pyarrow. Raises MissingExtraError without pyarrow. what: what needs it, for the message."""
    try:
        import pyarrow
    except ImportError:
        raise MissingExtraError(what, "parquet") from None
    return pyarrow


def to_pandas(records: Iterable[dict[str, Any]]) -> Any:
    """Returns records as a pandas.DataFrame. Raises MissingExtraError without pandas."""
    try:
        import pandas
    except ImportError:
        raise MissingExtraError("a data frame", "parquet", packages="pandas") from None
    return pandas.DataFrame.from_records(list(records))


def _features(index: OpenIndex, ids: list[int]) -> np.ndarray[Any, np.dtype[np.float16]]:
    """Reads the features of the items with these ids, in this order; returns (n, D) float16."""
    found = np.zeros((len(ids), index.meta.dimension), np.float16)
    with index.reading() as reader:
        for start in range(0, len(ids), _ITEMS):
            part: list[Item] = [reader.item(number) for number in ids[start : start + _ITEMS]]
            found[start : start + len(part)] = reader.shards.read(np.array([item.row for item in part], np.int64))
    return found


def _valid(path: str) -> str:
    """Replaces the bytes of a path that are not UTF-8 by U+FFFD, since Arrow cannot store them."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
