"""What a collection that `push` made holds, read as an index's parts are: items, features, and what it says of itself.

Rows of features have no numbers of their own in a collection: the id of an item is its row.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from simsearch.cluster.milvus import client, filters
from simsearch.cluster.milvus.client import EXACT, Hit, MilvusClient
from simsearch.errors import IndexDamagedError, IndexNotFoundError, ItemNotFoundError, UsageError
from simsearch.storage.filters import Condition
from simsearch.storage.meta import Meta
from simsearch.storage.reader import Item, SourceRow

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROPERTIES = "simsearch.storage.meta", "simsearch.images.sources.base", "simsearch.state"
"""What a collection carries: the index's `meta.json`, its sources, and how far the last push came, as JSON."""

SCAN = 1_000_000
"""The most items among which a condition that Milvus cannot say is looked for here."""


@dataclass(frozen=True)
class CollectionState:
    """What a collection says of itself. highest: no id is higher. failures: of the index that was pushed."""

    meta: Meta
    sources: dict[int, SourceRow]
    state: dict[str, Any]
    kind: str
    count: int
    read: float

    @classmethod
    def of(cls, rows: MilvusClient) -> CollectionState:
        """Raises IndexNotFoundError for a collection that `push` did not make."""
        try:
            meta, sources, state = properties(rows)
            read = {int(n): SourceRow(int(n), kind, root, root, {}) for n, kind, root in sources}
            kind = str(rows.index()["index_type"])
            search: dict[str, Any] = {"kind": kind, "recall": 1.0 if kind in EXACT else None, "parameters": {}}
            found = replace(Meta.of(meta, Path(str(rows.address))), search=search)
            return cls(found, read, state, kind, rows.count(), time.monotonic())
        except (KeyError, TypeError, ValueError) as error:
            raise IndexDamagedError(f"{rows.address}: its properties cannot be read: {error}") from error

    @property
    def roots(self) -> filters.Roots:
        return {number: (row.kind, row.root) for number, row in self.sources.items()}


def properties(rows: MilvusClient) -> list[Any]:
    """What PROPERTIES hold. Raises IndexNotFoundError where `push` has not made the collection."""
    facts = rows.describe().get("properties") or {}
    if not all(name in facts for name in PROPERTIES):
        hint = "name another; `simsearch push` makes one"
        raise IndexNotFoundError(f"the collection {rows.address} was not made by simsearch", hint=hint)
    return [json.loads(facts[name]) for name in PROPERTIES]


@dataclass(frozen=True)
class Permitted:
    """The items that meet some conditions: a Milvus expression and their number."""

    where: str
    count: int

    def __len__(self) -> int:
        return self.count


class Features:
    """`FeatureFiles` by id, with what a search brought along."""

    rows_per_shard = 1 << 62

    def __init__(self, rows: MilvusClient, dimension: int) -> None:
        self.rows, self.dimension = rows, dimension
        self.held: dict[int, NDArray[np.float16]] = {}

    def read(self, ids: NDArray[np.int64]) -> NDArray[np.float16]:
        """The features of the given items, in that order: (n, D) float16."""
        wanted = [int(number) for number in ids]
        found = self.rows.features([number for number in wanted if number not in self.held])
        found.update((number, self.held[number]) for number in wanted if number in self.held)
        missing = next((number for number in wanted if number not in found), None)
        if missing is not None:
            raise ItemNotFoundError(f"the index has no item {missing} any more")
        return np.stack([found[n] for n in wanted]) if wanted else np.zeros((0, self.dimension), np.float16)


class MilvusReader:
    """`reader.Reader` over a collection: one operation's questions, and what it has seen of items."""

    def __init__(self, rows: MilvusClient, state: CollectionState) -> None:
        self.rows_of, self.known = rows, state
        self.features = Features(rows, state.meta.dimension)
        self.shards = self.features
        self.seen: dict[int, Item] = {}

    def state(self, key: str) -> int:
        return self.known.count if key == "rows" else int(self.known.state["generation"])

    def epoch(self) -> int:
        return 0

    def count(self) -> int:
        return self.known.count

    def counts(self) -> dict[int, int]:
        return {number: self.rows_of.count(f"source == {number}") for number in self.known.sources}

    def sources(self) -> list[SourceRow]:
        return list(self.known.sources.values())

    def failures(self) -> NoReturn:
        raise UsageError("what failed is recorded in the index that was pushed, not in the collection")

    def label_count(self) -> int:
        return int(self.known.state["labels"])

    def item(self, number: int) -> Item:
        if number not in self.seen and 0 < number < 2**63:
            self._keep(self.rows_of.query(f"id == {int(number)}", client.SCALARS))
        if number not in self.seen:
            raise ItemNotFoundError(f"the index has no item {number}")
        return self.seen[number]

    def items(self, source: int | None = None) -> Iterator[Item]:
        where = "" if source is None else f"source == {source}"
        for rows in self.rows_of.scan(where, client.SCALARS[1:], int(self.known.state["highest"])):
            yield from map(_item, rows)

    def items_at(self, ids: Sequence[int]) -> dict[int, Item]:
        missing = [int(number) for number in ids if int(number) not in self.seen]
        for start in range(0, len(missing), client.SPAN):
            self._keep(self.rows_of.query(f"id in {missing[start : start + client.SPAN]}", client.SCALARS))
        return {int(number): self.item(int(number)) for number in ids}

    def ids_at(self, ids: NDArray[np.int64]) -> dict[int, int]:
        return {int(number): int(number) for number in ids}

    def row_of(self, digest: bytes) -> int | None:
        found = self.rows_of.query(f'digest == "{digest.hex()}"', ["id"])
        return min((int(row["id"]) for row in found), default=None)

    def spread(self, count: int) -> list[int]:
        ids = self.ids()[0]
        places = np.unique(np.linspace(0, max(0, len(ids) - 1), count).round().astype(int))
        return [int(number) for number in ids[places]] if len(ids) else []

    def ids(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        found = [int(row["id"]) for rows in self.rows_of.scan("", [], int(self.known.state["highest"])) for row in rows]
        return np.array(found, np.int64), np.array(found, np.int64)

    def rows(self, conditions: Iterable[Condition] = ()) -> Any:
        """The ids of all items, or what `_Flat.search` permits."""
        if not (wanted := list(conditions)):
            return self.ids()[0]
        where, rest = filters.to_milvus_expression(wanted, self.known.roots)
        count = self.rows_of.count(where)
        if not rest or not count:
            return Permitted(where, count)
        if count > SCAN:
            told = ", ".join(f"{c.field}{c.operator}{c.value}" for c in rest)
            raise UsageError(
                f"Milvus cannot say {told}, and to look at {count:,} items here would take too long",
                hint="another condition, as label=..., that leaves fewer items",
            )
        found: list[int] = []
        for rows in self.rows_of.scan(where, client.SCALARS[1:], int(self.known.state["highest"])):
            items = map(_item, rows)
            found += filters.matching(
                [(i.id, i.source, i.path, i.label, i.metadata, i.size, i.width, i.height) for i in items],
                rest,
                self.known.roots,
            )
        return Permitted(f"id in {found}", len(found))

    def keep(self, hits: Iterable[Hit]) -> None:
        """Remembers what a search brought along."""
        for hit in hits:
            if hit.id not in self.seen:
                self.seen[hit.id] = _item(hit.fields)
                self.features.held[hit.id] = hit.features.astype(np.float16)

    def _keep(self, rows: Iterable[dict[str, Any]]) -> None:
        self.seen.update((item.id, item) for item in map(_item, rows))


def _item(row: Mapping[str, Any]) -> Item:
    path = os.fsdecode(bytes.fromhex(row["path_hex"])) if row["path_hex"] else row["path"]
    metadata = row["metadata"]
    metadata = json.loads(metadata) if isinstance(metadata, str | bytes) else metadata
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
