"""`Engine` over a Milvus collection that `push` made: the same searches, filters, errors and order of matches.

The parts of an engine keep their shape, with ids for rows: a reader of items, the features, and a flat index whose
candidates Milvus names. These are measured again in float64, as everywhere, so that distances are Euclidean and exact
and ties go to the lower id; only the choice of candidates is Milvus's, and with a FLAT index it is exact too.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np

from simsearch.cluster.milvus import client
from simsearch.cluster.milvus.address import MilvusAddress, parse_address
from simsearch.cluster.milvus.client import EXACT, LARGEST, Hit, MilvusClient
from simsearch.cluster.milvus.reader import CollectionState, MilvusReader, Permitted, properties
from simsearch.engine import Engine
from simsearch.errors import UsageError
from simsearch.images.preprocessing import Preprocessing
from simsearch.images.sources.resolve import RecordedSource, Sources
from simsearch.models import registry
from simsearch.search.exact import FlatIndex, Neighbours, rank_exact
from simsearch.search.searcher import Search
from simsearch.search.snapshot import Snapshot
from simsearch.storage import roots as source_roots
from simsearch.storage.database import Database
from simsearch.storage.reader import Reader, SourceRow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.models.base import Model
    from simsearch.search.ann import AnnIndex

REFRESH = 2.0
"""Seconds for which the properties and the count are taken as they were, unless consistency is strong."""

DIRECT = 64
"""Up to this many permitted items are fetched and measured, where Milvus's index would only be approximate."""

ANSWER = 2048
"""Rows in one answer: 32 MiB of features at D = 4096."""

NEAR = 8
"""More candidates than asked for, among which ties at the last place are seen."""

ROUNDING = 1e-4
"""Relative error that Milvus's squared distances may have, of the lengths that they are computed from."""


class _Flat:
    """`FlatIndex` by Milvus. rows: how many items there are. effort: see `effort_of`."""

    def __init__(self, reader: MilvusReader, effort: int | None) -> None:
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
        return rank_exact(query, ids, self.read(ids), k) if len(ids) else Neighbours(ids, np.zeros(0))

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

    def serves(self, flat: FlatIndex, k: int, permitted: Permitted | None) -> bool:
        return permitted is None or len(permitted) > DIRECT


def _doubtful(query: NDArray[np.float32], hits: Sequence[Hit], found: Neighbours, k: int) -> bool:
    """Whether the k-th is so near to the last candidate that rounding may have hidden one as near."""
    last = hits[-1]
    lengths = float(np.dot(query, query)) + float(np.dot(last.features, last.features.astype(np.float64)))
    return bool(found.distances[k - 1] ** 2 >= last.squared - ROUNDING / 8 * lengths)


def effort_of(kind: str, width: int, effort: int | None) -> dict[str, Any]:
    """The search parameters of an index: `effort` where it is given, else what its kind does well with."""
    name = client.EFFORT.get(kind)
    if name is None:
        return {}
    if name == "nprobe":
        return {name: effort or 32}
    return {name: max(effort or 128, width)}


class _Store:
    """`Database` over a collection: `reading` gives a `Rows`."""

    def __init__(self, rows: MilvusClient) -> None:
        self.rows = rows
        self._state: CollectionState | None = None
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def reading(self) -> Iterator[Reader]:
        yield cast(Reader, MilvusReader(self.rows, self.current()))

    def current(self) -> CollectionState:
        self.rows.check_open()
        with self._lock:
            known = self._state
            strong = self.rows.address.consistency == "strong"
            if known is None or strong or time.monotonic() - known.read > REFRESH:
                known = self._state = CollectionState.of(self.rows)
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
        self.address: MilvusAddress = parse_address(address)
        registry.check_device(device)
        self.path = cast(Path, _Named(str(self.address)))
        self.device, self.roots = device, dict(roots or {})
        self.rows = MilvusClient(self.address)
        try:
            properties(self.rows)
            self.rows.load()
            store = _Store(self.rows)
            self.meta = store.current().meta
            self.store = cast(Database, store)
            self.recipe = Preprocessing.from_dict(self.meta.recipe)
            self._lock = threading.RLock()
            self._opened: dict[tuple[str, str], RecordedSource] = {}
            self._adopt(model)
            source_roots.check(self.roots, list(store.current().sources.values()))
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

    @property
    def complete(self) -> bool:
        """Whether the last push has ended; one that was interrupted leaves some items out, or as they were."""
        return bool(cast(_Store, self.store).current().state["complete"])

    def _approximate(self, epoch: int) -> AnnIndex | None:
        return None

    def _search(self, reader: Reader) -> Search:
        snapshot, own = self._current(reader), cast(MilvusReader, reader)
        structure = None if own.known.kind in EXACT else _Approximate()
        return Search(reader, snapshot, own.shards, self.meta.distances, cast("AnnIndex | None", structure))

    def _current(self, reader: Reader) -> Snapshot:
        own = cast(MilvusReader, reader)
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
            own = cast(MilvusReader, reader).known
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
