"""Lists the items of an index page by page, and counts its labels, folders and metadata fields (facets).

Sorted lists of ids, and counts, are computed once for each state of an index; the last few are kept in memory.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from simsearch.engine import Engine
from simsearch.storage import unmet
from simsearch.storage.filters import Condition, conditions
from simsearch.storage.reader import EARLIEST

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.storage.protocols import ItemReader

T = TypeVar("T")

Sort = Literal["newest", "oldest", "id"]

KEPT = 16
"""Maximum number of sorted lists and facets kept in memory, for all indexes; a list takes 8 bytes per item."""

SEEN = 200_000
"""The most items over which facets are counted."""

VALUES = 200
"""Largest number of labels, of folders, and of values of a field in the facets; the most frequent ones are listed."""

FIELDS = 50
"""The most metadata fields in the facets."""


@dataclass(frozen=True)
class Listing:
    """One page of a list of items.

    ids: of the items on the page. total: the number of items on all pages. next: the id to give as `after` to get the
    next page; None on the last page.
    """

    ids: list[int]
    total: int
    next: int | None


@dataclass(frozen=True)
class ListRequest:
    """A request for one page of a list of items.

    limit: the most items on the page. after: the id of the last item on the previous page.
    filters: conditions as for `simsearch query --filter`. label: only items with this label. folder: only items in or
    below this folder.
    sort: "newest" and "oldest" sort by the date of the file, with undated items last.
    """

    limit: int
    after: int | None = None
    filters: tuple[str, ...] = ()
    label: str | None = None
    folder: str | None = None
    sort: Sort = "newest"

    def conditions(self) -> list[Condition]:
        """Returns the conditions in `filters`, `folder` and `label`. Raises UsageError for an invalid filter."""
        found = [*self.filters]
        if self.folder:
            found.append(f"path~{_literal(self.folder.rstrip('/'))}/*")
        return conditions(found) + (conditions({"label": self.label}) if self.label is not None else [])


class Browser:
    """Lists items and facets. Safe for several threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Any, Any] = OrderedDict()
        self._lock = threading.Lock()

    def page(self, engine: Engine, request: ListRequest) -> Listing:
        """Returns a page of items. Raises UsageError for conditions that cannot be used."""
        wanted = request.conditions()
        with engine.reading() as reader:
            key = request.filters, request.label, request.folder, request.sort
            order = self._once(engine, reader, key, lambda: _ordered(reader, wanted, request.sort))
        start = 0
        if request.after is not None:
            place = np.flatnonzero(order == request.after)
            start = int(place[0]) + 1 if len(place) else len(order)
        ids = order[start : start + request.limit].tolist()
        return Listing(ids, len(order), ids[-1] if start + len(ids) < len(order) else None)

    def facets(self, engine: Engine) -> dict[str, Any]:
        """Returns the facets as a JSON object: labels, folders and metadata fields with their numbers of items."""
        with engine.reading() as reader:
            return self._once(engine, reader, "facets", lambda: _count(reader))

    def unmet(self, engine: Engine, wanted: list[Condition]) -> list[str]:
        """Returns a sentence about each condition that no item meets; see `unmet.unmet`."""
        with engine.reading() as reader:

            def counts(field: str) -> dict[str, int]:
                return self._once(engine, reader, ("values", field), lambda: reader.value_counts(field, unmet.COMPARED))

            return unmet.unmet(reader, wanted, counts)

    def _once(self, engine: Engine, reader: ItemReader, name: Any, make: Callable[[], T]) -> T:
        """Returns the result of `make()` for the present state of the index, from memory if it is kept there.

        name: identifies this result among all results for the same state of the same index.
        """
        key = engine.opened_index.identity, str(engine.path), reader.state("generation"), name
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                found: T = self._kept[key]
                return found
        made = make()
        with self._lock:
            self._kept[key] = made
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return made


def _ordered(reader: ItemReader, wanted: list[Condition], sort: Sort) -> NDArray[np.int64]:
    """Returns the ids of the items that meet the conditions, (n,), in the order `sort`."""
    ids, stamps = reader.stamps(wanted)
    if sort == "id":
        return np.sort(ids)
    dated = stamps >= EARLIEST
    key = np.where(dated, stamps, 0) if sort == "oldest" else np.where(dated, -stamps, 0)
    order: NDArray[np.int64] = ids[np.lexsort((ids if sort == "oldest" else -ids, key, ~dated))]
    return order


def _count(reader: ItemReader) -> dict[str, Any]:
    """Returns the facets as a JSON object. At most SEEN items are counted."""
    labels: Counter[str] = Counter()
    folders: Counter[str] = Counter()
    fields: dict[str, Counter[Any]] = {}
    seen = 0
    for item in itertools.islice(reader.items(), SEEN):
        seen += 1
        if item.label is not None:
            labels[item.label] += 1
        parts = item.path.split("/")[:-1]
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts) + 1))
        for name, value in item.metadata.items():
            if isinstance(value, str | int | float) and (name in fields or len(fields) < FIELDS):
                fields.setdefault(name, Counter())[value] += 1
    return {
        "items": reader.count(),
        "complete": seen == reader.count(),
        "labels": _most(labels),
        "folders": _most(folders),
        "fields": [_field(name, values) for name, values in fields.items()],
    }


def _most(counted: Counter[Any]) -> list[dict[str, Any]]:
    return [{"value": value, "items": count} for value, count in counted.most_common(VALUES)]


def _field(name: str, values: Counter[Any]) -> dict[str, Any]:
    """Returns the facet of a metadata field: its values, and the smallest and largest if all are numbers."""
    numbers = [value for value in values if isinstance(value, int | float)]
    only_numbers = len(numbers) == len(values)
    return {
        "name": name,
        "items": values.total(),
        "least": min(numbers) if only_numbers else None,
        "most": max(numbers) if only_numbers else None,
        "values": _most(values),
    }


def _literal(text: str) -> str:
    """Returns a glob that matches only this text."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)
