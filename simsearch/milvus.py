"""`Engine` over a Milvus collection that `push` made: the same searches, filters, errors and order of matches.

The parts of an engine keep their shape, with ids for rows: a reader of items, the features, and a flat index whose
candidates Milvus names. These are measured again in float64, as everywhere, so that distances are Euclidean and exact
and ties go to the lower id; only the choice of candidates is Milvus's, and with a FLAT index it is exact too.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np

from simsearch import collection, expressions, models
from simsearch.addresses import Address, parse
from simsearch.collection import EXACT, LARGEST, Collection, Hit
from simsearch.engine import Engine
from simsearch.errors import IndexDamagedError, IndexNotFoundError, ItemNotFoundError, UsageError
from simsearch.filters import Condition
from simsearch.index import FlatIndex, Neighbours, nearest
from simsearch.meta import Meta
from simsearch.recipe import Recipe
from simsearch.search import Search
from simsearch.shards import Shards
from simsearch.snapshot import RecordedSource, Snapshot, Sources
from simsearch.store import Item, Reader, SourceRow, Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.models import Model
    from simsearch.structure import Structure

PROPERTIES = "simsearch.meta", "simsearch.sources", "simsearch.state"
"""What a collection carries: the index's `meta.json`, its sources, and how far the last push came, as JSON."""

REFRESH = 2.0
"""Seconds for which the properties and the count are taken as they were, unless consistency is strong."""

DIRECT = 64
"""Up to this many permitted items are fetched and measured, where Milvus's index would only be approximate."""

ANSWER = 2048
"""Rows in one answer: 32 MiB of features at D = 4096."""

SCAN = 1_000_000
"""The most items among which a condition that Milvus cannot say is looked for here."""

NEAR = 8
"""More candidates than asked for, among which ties at the last place are seen."""

ROUNDING = 1e-4
"""Relative error that Milvus's squared distances may have, of the lengths that they are computed from."""


@dataclass(frozen=True)
class State:
    """What a collection says of itself. highest: no id is higher. failures: of the index that was pushed."""

    meta: Meta
    sources: dict[int, SourceRow]
    state: dict[str, Any]
    kind: str
    count: int
    read: float

    @classmethod
    def of(cls, rows: Collection) -> State:
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
    def roots(self) -> expressions.Roots:
        return {number: (row.kind, row.root) for number, row in self.sources.items()}


def properties(rows: Collection) -> list[Any]:
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


class _Features:
    """`Shards` by id, with what a search brought along."""

    rows_per_shard = 1 << 62

    def __init__(self, rows: Collection, dimension: int) -> None:
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


class _Reader:
    """`store.Reader` over a collection: one operation's questions, and what it has seen of items."""

    def __init__(self, rows: Collection, state: State) -> None:
        self.rows_of, self.known = rows, state
        self.features = _Features(rows, state.meta.dimension)
        self.shards = cast(Shards, self.features)
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

    def integrity(self) -> NoReturn:
        raise UsageError(f"{self.rows_of.address} has no files to be verified",
                         hint="`simsearch push` compares a collection with its index")  # fmt: skip

    def label_count(self) -> int:
        return int(self.known.state["labels"])

    def item(self, number: int) -> Item:
        if number not in self.seen and 0 < number < 2**63:
            self._keep(self.rows_of.query(f"id == {int(number)}", collection.SCALARS))
        if number not in self.seen:
            raise ItemNotFoundError(f"the index has no item {number}")
        return self.seen[number]

    def items(self, source: int | None = None) -> Iterator[Item]:
        where = "" if source is None else f"source == {source}"
        for rows in self.rows_of.scan(where, collection.SCALARS[1:], int(self.known.state["highest"])):
            yield from map(_item, rows)

    def items_at(self, ids: Sequence[int]) -> dict[int, Item]:
        missing = [int(number) for number in ids if int(number) not in self.seen]
        for start in range(0, len(missing), collection.SPAN):
            self._keep(self.rows_of.query(f"id in {missing[start : start + collection.SPAN]}", collection.SCALARS))
        return {int(number): self.item(int(number)) for number in ids}

    def ids_at(self, ids: NDArray[np.int64]) -> dict[int, int]:
        return {int(number): int(number) for number in ids}

    def row_of(self, digest: bytes) -> int | None:
        found = self.rows_of.query(f'digest == "{digest.hex()}"', ["id"])
        return min((int(row["id"]) for row in found), default=None)

    def ids(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        found = [int(row["id"]) for rows in self.rows_of.scan("", [], int(self.known.state["highest"])) for row in rows]
        return np.array(found, np.int64), np.array(found, np.int64)

    def rows(self, conditions: Iterable[Condition] = ()) -> Any:
        """The ids of all items, or what `_Flat.search` permits."""
        if not (wanted := list(conditions)):
            return self.ids()[0]
        where, rest = expressions.translate(wanted, self.known.roots)
        count = self.rows_of.count(where)
        if not rest or not count:
            return Permitted(where, count)
        if count > SCAN:
            told = ", ".join(f"{c.field}{c.operator}{c.value}" for c in rest)
            raise UsageError(f"Milvus cannot say {told}, and to look at {count:,} items here would take too long",
                             hint="another condition, as label=..., that leaves fewer items")  # fmt: skip
        found: list[int] = []
        for rows in self.rows_of.scan(where, collection.SCALARS[1:], int(self.known.state["highest"])):
            items = map(_item, rows)
            found += expressions.matching(
                [(i.id, i.source, i.path, i.label, i.metadata, i.size, i.width, i.height) for i in items],
                rest, self.known.roots,
            )  # fmt: skip
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
    return Item(number, int(row["source"]), path, label, metadata or {}, bytes.fromhex(row["digest"]), int(row["size"]),
                int(row["stamp"]), int(row["width"]), int(row["height"]), number)  # fmt: skip


class _Flat:
    """`FlatIndex` by Milvus. rows: how many items there are. effort: see `effort_of`."""

    def __init__(self, reader: _Reader, effort: int | None) -> None:
        self.reader, self.rows, self.effort = reader, reader.known.count, effort

    def search(self, queries: NDArray[np.float32], k: int, permitted: Permitted | None) -> list[Neighbours]:
        """The k nearest items to each of (nq, D) queries, and those that tie with the last; none is missed."""
        kind = self.reader.known.kind
        if kind not in EXACT and (permitted is None or len(permitted) > DIRECT):
            raise UsageError(f"{self.reader.rows_of.address} has a {kind} index, which does not search exactly",
                             hint="a collection with a FLAT index does; see `simsearch push --index-type`")  # fmt: skip
        return self.candidates(queries, k, permitted)

    def candidates(self, queries: NDArray[np.float32], k: int, permitted: Permitted | None) -> list[Neighbours]:
        """The same, among what Milvus's index finds."""
        available = self.rows if permitted is None else len(permitted)
        k = min(k, available)
        if k == 0 or not len(queries):
            return [Neighbours(np.zeros(0, np.int64), np.zeros(0))] * len(queries)
        if k > LARGEST:
            raise UsageError(f"{k:,} matches are more than the {LARGEST:,} that Milvus gives")
        if not np.all(np.einsum("nd,nd->n", queries, queries, dtype=np.float64) < 1e37):
            raise UsageError("the vector is too long for Milvus, whose distances are float32")
        where = "" if permitted is None else permitted.where
        if self.reader.known.kind not in EXACT and permitted is not None and available <= DIRECT:
            return [self._measure(query, where, k) for query in queries]
        found: dict[int, Neighbours] = {}
        pending, width = list(range(len(queries))), min(k + NEAR, available, LARGEST)
        while pending:
            unsettled = []
            for number, hits in zip(pending, self._ask(queries[pending], width, where), strict=True):
                self.reader.keep(hits)
                if len(hits) < k and available <= LARGEST:  # a graph may lose its way among what is not permitted
                    found[number] = self._measure(queries[number], where, k)
                    continue
                found[number] = self.rank(queries[number], np.array([hit.id for hit in hits], np.int64), k)
                if len(hits) == width < min(available, LARGEST) and _doubtful(queries[number], hits, found[number], k):
                    unsettled.append(number)  # one as near, but for rounding, may have been left out
            pending, width = unsettled, min(4 * width, available, LARGEST)
        return [found[number] for number in range(len(queries))]

    def _ask(self, queries: NDArray[np.float32], width: int, where: str) -> list[list[Hit]]:
        """In portions that fit into one answer."""
        step = max(1, ANSWER // width)
        effort = effort_of(self.reader.known.kind, width, self.effort)
        hits: list[list[Hit]] = []
        for start in range(0, len(queries), step):
            hits += self.reader.rows_of.search(queries[start : start + step], width, where, effort)
        return hits

    def read(self, ids: NDArray[np.int64]) -> NDArray[np.float16]:
        return self.reader.features.read(ids)

    def rank(self, query: NDArray[np.float32], ids: NDArray[np.int64], k: int) -> Neighbours:
        """The k nearest of the given items, measured in float64, and those that tie with the last."""
        return nearest(query, ids, self.read(ids), k) if len(ids) else Neighbours(ids, np.zeros(0))

    def _measure(self, query: NDArray[np.float32], where: str, k: int) -> Neighbours:
        """The k nearest of all that a condition permits, fetched and measured."""
        rows = self.reader.rows_of.scan(where, [], int(self.reader.known.state["highest"]))
        ids = np.array([int(row["id"]) for part in rows for row in part], np.int64)
        best = Neighbours(ids[:0], np.zeros(0))
        for start in range(0, len(ids), 1024):
            best = self.rank(query, np.concatenate([best.rows, ids[start : start + 1024]]), k)
        return best


class _Approximate:
    """Milvus's index in the place of a structure: `exact=True` goes past it, to `_Flat.search`."""

    def search(
        self, flat: FlatIndex, queries: NDArray[np.float32], k: int, permitted: Permitted | None
    ) -> list[Neighbours]:
        return cast(_Flat, flat).candidates(queries, k, permitted)


def _doubtful(query: NDArray[np.float32], hits: Sequence[Hit], found: Neighbours, k: int) -> bool:
    """Whether the k-th is so near to the last candidate that rounding may have hidden one as near."""
    last = hits[-1]
    lengths = float(np.dot(query, query)) + float(np.dot(last.features, last.features.astype(np.float64)))
    return bool(found.distances[k - 1] ** 2 >= last.squared - ROUNDING / 8 * lengths)


def effort_of(kind: str, width: int, effort: int | None) -> dict[str, Any]:
    """The search parameters of an index: `effort` where it is given, else what its kind does well with."""
    name = collection.EFFORT.get(kind)
    if name is None:
        return {}
    if name == "nprobe":
        return {name: effort or 32}
    return {name: max(effort or 128, width)}


class _Store:
    """`Store` over a collection: `reading` gives a `_Reader`."""

    def __init__(self, rows: Collection) -> None:
        self.rows = rows
        self._state: State | None = None
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Reader]:
        yield cast(Reader, _Reader(self.rows, self.current()))

    def current(self) -> State:
        self.rows.check_open()
        with self._lock:
            known = self._state
            strong = self.rows.address.consistency == "strong"
            if known is None or strong or time.monotonic() - known.read > REFRESH:
                known = self._state = State.of(self.rows)
            return known

    def close(self) -> None:
        self.rows.close()


class MilvusEngine(Engine):
    """An open collection; what it takes besides an address is what `Engine` takes.

    Raises IndexNotFoundError, ModelMismatchError, UnavailableError, MissingExtraError.
    """

    def __init__(
        self, address: str, *, model: str | Model | None = None, device: str = "auto",
        roots: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.address: Address = parse(address)
        models.check_device(device)
        self.path = cast(Path, _Named(str(self.address)))
        self.device, self.roots = device, dict(roots or {})
        self.rows = Collection(self.address)
        try:
            properties(self.rows)
            self.rows.load()
            store = _Store(self.rows)
            self.meta = store.current().meta
            self.store = cast(Store, store)
            self.recipe = Recipe.from_dict(self.meta.recipe)
            self._lock = threading.RLock()
            self._opened: dict[tuple[str, str], RecordedSource] = {}
            self._adopt(model)
            self._check_roots(self.roots, list(store.current().sources.values()))
        except BaseException:
            self.rows.close()
            raise

    def close(self) -> None:
        """Ends the connection. The engine cannot be used afterwards."""
        self.store.close()
        with self._lock:
            opened, self._opened = list(self._opened.values()), {}
        for source in opened:
            source.close()

    @staticmethod
    def identity(path: Path) -> tuple[int, int, int, int] | None:
        """A collection stays what it is; what is pushed into it is seen by the next search."""
        return 0, 0, 0, 0

    @property
    def exact(self) -> bool:
        """Whether the index of the features is one that compares with all."""
        return cast(_Store, self.store).current().kind in EXACT

    def _approximate(self, epoch: int) -> Structure | None:
        return None

    def _search(self, reader: Reader) -> Search:
        snapshot, own = self._current(reader), cast(_Reader, reader)
        structure = None if own.known.kind in EXACT else _Approximate()
        return Search(reader, snapshot, own.shards, self.meta.distances, cast("Structure | None", structure))

    def _current(self, reader: Reader) -> Snapshot:
        own = cast(_Reader, reader)
        with self._lock:
            self.meta = own.known.meta
            opened = Sources()
            for row in own.sources():
                place = row.kind, self.root_of(row)
                opened[row.id] = self._opened.setdefault(place, RecordedSource(*place))
        flat = cast(FlatIndex, _Flat(own, self.address.effort))
        return Snapshot(own.state("generation"), flat, None, opened)

    def root_of(self, row: SourceRow) -> str:
        """Where a source is: as given by `root`, or where it was when it was pushed."""
        return self.roots.get(row.root, self.roots.get("", row.root))

    def info(self) -> dict[str, Any]:
        """What is in the collection, as plain JSON values; `recall` is not known of Milvus's approximate indexes."""
        with self.store.reading() as reader:
            own = cast(_Reader, reader).known
            index = {key: value for key, value in self.rows.index().items() if isinstance(value, str | int | float)}
            counts = reader.counts()
            return {
                "path": str(self.address), "items": own.count, "failures": own.meta.failures,
                "labels": reader.label_count(), "model": own.meta.model, "weights_sha256": own.meta.weights_sha256,
                "features": own.meta.features, "dimension": own.meta.dimension, "metric": own.meta.metric,
                "storage": own.state["storage"], "engine": own.meta.engine,
                "search": {**own.meta.search, "parameters": index},
                "bytes": own.count * own.meta.dimension * (2 if own.state["storage"] == "float16" else 4),
                "rows": own.count, "recipe": own.meta.recipe, "created": own.meta.created, "format": own.meta.format,
                "milvus": self.rows.version(), "complete": own.state["complete"],
                "sources": [
                    {"kind": row.kind, "root": self.root_of(row), "items": counts.get(row.id, 0)}
                    for row in reader.sources()
                ],
            }  # fmt: skip

    def _unchangeable(self, *_: Any, **__: Any) -> NoReturn:
        raise UsageError(f"{self.address} is not changed in place",
                         hint="change the index that it was pushed from, and push again")  # fmt: skip

    add = remove = find = relocate = _unchangeable


class _Named(str):
    """An address where a path is expected: it has a name."""

    @property
    def name(self) -> str:
        return self.rpartition("/")[2]
