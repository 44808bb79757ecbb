"""Reads the items, features and properties of a collection that `push` made, with the interface of an index.

A collection has no row numbers; the id of an item is used as the row of its features.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from simsearch.cluster.milvus import filters, hints
from simsearch.cluster.milvus.client import SCALARS, SPAN, Hit, MilvusClient
from simsearch.cluster.milvus.index_kinds import EXACT
from simsearch.common import outside_json
from simsearch.errors import IndexDamagedError, IndexNotFoundError, ItemNotFoundError, UsageError
from simsearch.storage.filters import Condition
from simsearch.storage.meta import Meta
from simsearch.storage.reader import Item, SourceRow

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROPERTIES = "simsearch.meta", "simsearch.sources", "simsearch.state"
"""Properties of a collection, as JSON: the index's `meta.json`, its sources, and the state after the last push."""

COUNTED = 100_000
"""The most items that are fetched to count the values of a field."""

SCAN = 1_000_000
"""The most items that are fetched to check a condition that Milvus cannot express."""


@dataclass(frozen=True)
class CollectionState:
    """The properties of a collection, and its number of rows.

    state: `complete`, `generation`, `storage`, `highest` (no id is higher) and `labels`, as the last push wrote them.
    kind: the kind of the Milvus index. read: the monotonic time at which the state was read.
    """

    meta: Meta
    sources: dict[int, SourceRow]
    state: dict[str, Any]
    kind: str
    count: int
    read: float

    @classmethod
    def of(cls, client: MilvusClient) -> CollectionState:
        """Reads the state of a collection.

        Raises IndexNotFoundError if `push` did not make the collection, IndexDamagedError for damaged properties.
        """
        try:
            meta, sources, state = properties(client)
            read = {int(n): SourceRow(int(n), kind, root, root, _options(*rest)) for n, kind, root, *rest in sources}
            kind = str(client.index()["index_type"])
            search: dict[str, Any] = {"kind": kind, "recall": 1.0 if kind in EXACT else None, "parameters": {}}
            found = replace(Meta.of(meta, Path(str(client.address))), search=search)
            return cls(found, read, state, kind, client.count(), time.monotonic())
        except (KeyError, TypeError, ValueError) as error:
            raise IndexDamagedError(f"{client.address}: its properties cannot be read: {error}") from error

    @property
    def roots(self) -> filters.Roots:
        """A dict from the number of each source to its kind and root."""
        return {number: (row.kind, row.root) for number, row in self.sources.items()}


def properties(client: MilvusClient) -> list[Any]:
    """Returns the values of PROPERTIES in a collection. Raises IndexNotFoundError if `push` did not make it."""
    facts = client.describe().get("properties") or {}
    if not all(name in facts for name in PROPERTIES):
        message = f"the collection {client.address} was not made by simsearch"
        raise IndexNotFoundError(message, **hints.MADE_BY_PUSH)
    return [outside_json.parse(facts[name]) for name in PROPERTIES]


@dataclass(frozen=True)
class Permitted:
    """The items that meet some conditions. where: a Milvus expression for them. count: their number."""

    where: str
    count: int

    def __len__(self) -> int:
        return self.count


class CollectionFeatures:
    """Reads features by id, with the interface of `FeatureFiles`; features that came with matches are cached."""

    rows_per_shard = 1 << 62

    def __init__(self, client: MilvusClient, dimension: int) -> None:
        self.client, self.dimension = client, dimension
        self.cache: dict[int, NDArray[np.float16]] = {}

    def read(self, ids: NDArray[np.int64]) -> NDArray[np.float16]:
        """Reads the features of items in the given order: (n, D) float16. Raises ItemNotFoundError."""
        wanted = [int(number) for number in ids]
        found = self.client.features([number for number in wanted if number not in self.cache])
        found.update((number, self.cache[number]) for number in wanted if number in self.cache)
        missing = next((number for number in wanted if number not in found), None)
        if missing is not None:
            raise ItemNotFoundError(f"item {missing} has been removed from the index")
        return np.stack([found[n] for n in wanted]) if wanted else np.zeros((0, self.dimension), np.float16)


class MilvusReader:
    """An `ItemReader` over a collection, for one operation; remembers the items that it has read."""

    def __init__(self, client: MilvusClient, state: CollectionState) -> None:
        self.client, self.collection = client, state
        self.features = CollectionFeatures(client, state.meta.dimension)
        self.shards = self.features
        self.seen: dict[int, Item] = {}

    def state(self, key: str) -> int:
        return self.collection.count if key == "rows" else int(self.collection.state["generation"])

    def compactions(self) -> int:
        return 0

    def count(self) -> int:
        return self.collection.count

    def count_by_source(self) -> dict[int, int]:
        return {number: self.client.count(f"source == {number}") for number in self.collection.sources}

    def sources(self) -> list[SourceRow]:
        return list(self.collection.sources.values())

    def failures(self) -> NoReturn:
        raise UsageError("failures are recorded in the index that was pushed, not in the collection")

    def label_count(self) -> int:
        return int(self.collection.state["labels"])

    def value_counts(self, field: str, limit: int = -1) -> dict[str, int]:
        """Returns each text in a field with the number of items that have it; see `storage.filters.value_counts`.

        Returns {} for a collection of more than COUNTED items.
        """
        if self.collection.count > COUNTED:
            return {}
        key = Condition(field, "=", ()).key
        values = (item.label if key is None else item.metadata.get(key) for item in self.items())
        counted = Counter(value for value in values if isinstance(value, str))
        ordered = sorted(counted.items(), key=lambda pair: (-pair[1], pair[0]))
        return dict(ordered if limit < 0 else ordered[:limit])

    def item(self, number: int) -> Item:
        if number not in self.seen and 0 < number < 2**63:
            self._keep(self.client.query(f"id == {int(number)}", SCALARS))
        if number not in self.seen:
            raise ItemNotFoundError(f"the index has no item {number}")
        return self.seen[number]

    def items(self, source: int | None = None, *, conditions: Sequence[Condition] = ()) -> Iterator[Item]:
        parts = ([] if source is None else [f"source == {source}"]) + (
            [f"({self.rows(conditions).where})"] if conditions else []
        )
        where = " and ".join(parts)
        for rows in self.client.scan(where, SCALARS[1:], int(self.collection.state["highest"])):
            yield from map(_item, rows)

    def items_at(self, ids: Sequence[int]) -> dict[int, Item]:
        missing = [int(number) for number in ids if int(number) not in self.seen]
        for start in range(0, len(missing), SPAN):
            self._keep(self.client.query(f"id in {missing[start : start + SPAN]}", SCALARS))
        return {int(number): self.item(int(number)) for number in ids}

    def ids_at(self, ids: NDArray[np.int64]) -> dict[int, int]:
        return {int(number): int(number) for number in ids}

    def ids_of(self, digest: bytes) -> list[int]:
        return sorted(int(row["id"]) for row in self.client.query(f'digest == "{digest.hex()}"', ["id"]))

    def row_of(self, digest: bytes) -> int | None:
        return min(self.ids_of(digest), default=None)

    def sample_ids(self, count: int) -> list[int]:
        ids = self.ids_and_rows()[0]
        places = np.unique(np.linspace(0, max(0, len(ids) - 1), count).round().astype(int))
        return [int(number) for number in ids[places]] if len(ids) else []

    def stamps(self, conditions: Iterable[Condition] = ()) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        wanted = list(conditions)
        where = self.rows(wanted).where if wanted else ""
        rows = self.client.scan(where, ["stamp"], int(self.collection.state["highest"]))
        pairs = [(int(row["id"]), int(row["stamp"])) for part in rows for row in part]
        values = np.array(pairs, np.int64).reshape(-1, 2)
        return values[:, 0], values[:, 1]

    def ids_and_rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        found = [
            int(row["id"]) for rows in self.client.scan("", [], int(self.collection.state["highest"])) for row in rows
        ]
        return np.array(found, np.int64), np.array(found, np.int64)

    def rows(self, conditions: Iterable[Condition] = ()) -> Any:
        """Returns the items that meet the conditions as a `Permitted`; without conditions, the ids of all items, (n,).

        Raises UsageError if a condition cannot be checked.
        """
        if not (wanted := list(conditions)):
            return self.ids_and_rows()[0]
        where, rest = filters.to_milvus_expression(wanted, self.collection.roots)
        count = self.client.count(where)
        if not rest or not count:
            self._check_fields(wanted, count)
            return Permitted(where, count)
        if count > SCAN:
            conditions_text = ", ".join(map(str, rest))
            raise UsageError(
                f"Milvus cannot check {conditions_text}, and checking {count:,} items without Milvus takes too long",
                hint="add a condition that leaves fewer items, such as label=...",
            )
        found: list[int] = []
        for rows in self.client.scan(where, SCALARS[1:], int(self.collection.state["highest"])):
            items = map(_item, rows)
            found += filters.matching(
                [(i.id, i.source, i.path, i.label, i.metadata, i.size, i.width, i.height) for i in items],
                rest,
                self.collection.roots,
            )
        self._check_fields(wanted, len(found))
        return Permitted(f"id in {found}", len(found))

    def _check_fields(self, wanted: Sequence[Condition], found: int) -> None:
        """Raises UsageError for a condition on metadata that must be a mistake; see `filters.check_metadata`.

        If the collection has more than SCAN items, nothing is checked, because reading all items takes too long.
        found: the number of items that meet all conditions. It decides which conditions are checked.
        """
        doubtful = any(c.key is not None and (not found or c.operator == "!=") for c in wanted)
        if doubtful and self.collection.count <= SCAN:
            filters.check_metadata((item.metadata for item in self.items()), wanted, found)

    def keep(self, hits: Iterable[Hit]) -> None:
        """Caches the items and features that came with matches."""
        for hit in hits:
            if hit.id not in self.seen:
                self.seen[hit.id] = _item(hit.fields)
                self.features.cache[hit.id] = hit.features.astype(np.float16)

    def _keep(self, rows: Iterable[dict[str, Any]]) -> None:
        self.seen.update((item.id, item) for item in map(_item, rows))


def _item(row: Mapping[str, Any]) -> Item:
    path = os.fsdecode(bytes.fromhex(row["path_hex"])) if row["path_hex"] else row["path"]
    metadata = row["metadata"]
    metadata = outside_json.parse(metadata) if isinstance(metadata, str | bytes) else metadata
    label = row["label"] if row["labelled"] else None
    number = int(row["id"])
    return Item(
        number,
        int(row["source"]),
        path,
        label,
        metadata or {},
        bytes.fromhex(row["digest"]),
        int(row["size"]),
        int(row["stamp"]),
        int(row["width"]),
        int(row["height"]),
        number,
    )


def _options(outside: object = False) -> dict[str, Any]:
    """Returns the value of `SourceRow.options` for a source of the collection.

    outside: True if pictures of the source may lie outside its folder. In the property that lists the
    sources, this value comes after the root of the source. It is missing for most sources.
    """
    return {"outside": True} if outside is True else {}
