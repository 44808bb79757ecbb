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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.cluster.milvus import client
from simsearch.cluster.milvus.client import EXACT, LARGEST, Hit, MilvusClient
from simsearch.cluster.milvus.reader import CollectionState, MilvusReader, Permitted, properties
from simsearch.common.milvus_address import MilvusAddress, parse_address
from simsearch.engine import Engine
from simsearch.errors import UsageError
from simsearch.images.sources.resolve import RecordedSource, Sources
from simsearch.models import registry
from simsearch.search.exact import Neighbours, rank_exact
from simsearch.storage import roots as source_roots
from simsearch.storage.meta import Meta
from simsearch.storage.reader import SourceRow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.models.base import Model

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
            raise UsageError(
                f"{self.reader.rows_of.address} has a {kind} index, which does not search exactly",
                hint="a collection with a FLAT index does; see `simsearch push --index-type`",
            )
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
        self, flat: _Flat, queries: NDArray[np.float32], k: int, permitted: Permitted | None
    ) -> list[Neighbours]:
        return flat.candidates(queries, k, permitted)

    def serves(self, flat: _Flat, k: int, permitted: Permitted | None) -> bool:
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


class MilvusIndex:
    """An open collection; what it takes besides an address is what `Index` takes.

    Raises IndexNotFoundError, UnavailableError, MissingExtraError.
    """

    folder = None  # features with components are not pushed
    identity = (0,)  # what is pushed into a collection is seen by the next search

    def __init__(self, address: str, *, roots: Mapping[str, str] | None = None) -> None:
        self.address: MilvusAddress = parse_address(address)
        self.path = _Named(str(self.address))
        self.roots = dict(roots or {})
        self.rows = MilvusClient(self.address)
        self._state: CollectionState | None = None
        self._opened: dict[tuple[str, str], RecordedSource] = {}
        self._lock = threading.Lock()
        try:
            properties(self.rows)
            self.rows.load()
            source_roots.check(self.roots, list(self.state().sources.values()))
        except BaseException:
            self.rows.close()
            raise

    def identity_now(self) -> tuple[int, ...]:
        return self.identity

    def close(self) -> None:
        """Ends the connection. The collection cannot be used afterwards."""
        self.rows.close()
        with self._lock:
            opened, self._opened = list(self._opened.values()), {}
        for source in opened:
            source.close()

    def state(self) -> CollectionState:
        """What the collection says of itself, now or a moment ago."""
        self.rows.check_open()
        with self._lock:
            known = self._state
            strong = self.rows.address.consistency == "strong"
            if known is None or strong or time.monotonic() - known.read > REFRESH:
                known = self._state = CollectionState.of(self.rows)
            return known

    @contextlib.contextmanager
    def reading(self) -> Iterator[MilvusReader]:
        yield MilvusReader(self.rows, self.state())

    @property
    def meta(self) -> Meta:
        """What `meta.json` says of the index that was pushed."""
        with self._lock:
            known = self._state
        return known.meta if known is not None else self.state().meta

    @property
    def complete(self) -> bool:
        """False if the last push has not ended, so that some items are missing, or as they were."""
        return bool(self.state().state["complete"])

    def sources(self, reader: MilvusReader) -> Sources:
        """The sources by number."""
        with self._lock:
            opened = Sources()
            for row in reader.sources():
                place = row.kind, self.root_of(row)
                opened[row.id] = self._opened.setdefault(place, RecordedSource(*place))
            return opened

    def root_of(self, row: SourceRow) -> str:
        """Where a source is: as given by `roots`, or where it was when it was pushed."""
        return self.roots.get(row.root, self.roots.get("", row.root))

    def info(self) -> dict[str, Any]:
        """What is in the collection, as plain JSON values; `recall` is not known of Milvus's approximate indexes."""
        with self.reading() as reader:
            own = reader.known
            index = {key: value for key, value in self.rows.index().items() if isinstance(value, str | int | float)}
            counts = reader.counts()
            return {
                "path": str(self.address),
                "items": own.count,
                "failures": own.meta.failures,
                "labels": reader.label_count(),
                "model": own.meta.model,
                "weights_sha256": own.meta.weights_sha256,
                "features": own.meta.features,
                "dimension": own.meta.dimension,
                "metric": own.meta.metric,
                "storage": own.state["storage"],
                "engine": own.meta.engine,
                "search": {**own.meta.search, "parameters": index},
                "bytes": own.count * own.meta.dimension * (2 if own.state["storage"] == "float16" else 4),
                "rows": own.count,
                "recipe": own.meta.recipe,
                "created": own.meta.created,
                "format": own.meta.format,
                "milvus": self.rows.version(),
                "complete": own.state["complete"],
                "sources": [
                    {"kind": row.kind, "root": self.root_of(row), "items": counts.get(row.id, 0)}
                    for row in reader.sources()
                ],
            }


@dataclass(frozen=True)
class _Snapshot:
    """What a collection holds; Milvus itself leaves out what is no longer there."""

    flat: _Flat
    sources: Sources
    live: None = None


class _Snapshots:
    """`Snapshots` of a collection."""

    def __init__(self, index: MilvusIndex) -> None:
        self.index = index

    def reading(self) -> contextlib.AbstractContextManager[MilvusReader]:
        return self.index.reading()

    def current(self, reader: MilvusReader) -> _Snapshot:
        return _Snapshot(_Flat(reader, self.index.address.effort), self.index.sources(reader))

    def structure(self, reader: MilvusReader) -> _Approximate | None:
        return None if reader.known.kind in EXACT else _Approximate()

    def close(self) -> None:
        """Nothing is held."""


def open_collection(
    address: str, *, model: str | Model | None = None, device: str = "auto", roots: Mapping[str, str] | None = None
) -> Engine:
    """An engine over a collection, which can only be searched; for the arguments see `Engine`.

    Raises IndexNotFoundError, ModelMismatchError, UnavailableError, MissingExtraError.
    """
    registry.check_device(device)
    index = MilvusIndex(address, roots=roots)
    return Engine.over(index, _Snapshots(index), model, device)


class _Named(str):
    """An address where a path is expected: it has a name."""

    @property
    def name(self) -> str:
        return self.rpartition("/")[2]
