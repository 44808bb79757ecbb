"""Opens a Milvus collection that `push` wrote: as an `Engine`, with the same searches, filters and errors.

Milvus chooses the candidates of a search. Their distances are computed again in float64, so distances are exact, and
ties go to the lower id. With a FLAT index, the choice of candidates is exact too. A collection has no row numbers; the
id of an item is used as its row.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.cluster.milvus.client import LARGEST, Hit, MilvusClient
from simsearch.cluster.milvus.index_kinds import EXACT, search_parameters
from simsearch.cluster.milvus.reader import CollectionState, MilvusReader, Permitted, properties
from simsearch.common.distances import squared_norms
from simsearch.common.milvus_address import MilvusAddress, parse_address
from simsearch.engine import Engine
from simsearch.errors import UsageError
from simsearch.images.sources.resolve import RecordedSource, Sources
from simsearch.models import registry
from simsearch.search.ranking import Neighbours, rank_exact
from simsearch.storage import roots as source_roots
from simsearch.storage.meta import Meta
from simsearch.storage.reader import SourceRow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.models.base import Model

REFRESH = 2.0
"""Seconds for which the properties and the count are cached, unless consistency is strong."""

DIRECT = 64
"""If a filter permits at most this many items, all of them are fetched, and the approximate index is not used."""

ANSWER = 2048
"""The most rows in one answer of Milvus, unless one query needs more: 32 MiB of features at D = 4096."""

NEAR = 8
"""Number of candidates in addition to the k matches, so that ties with the last match are noticed."""

ROUNDING = 1e-4
"""Error of Milvus's squared distances, as a fraction of the squared lengths of the vectors."""


class _Flat:
    """Searches a collection, with the interface of `search.exact.FlatIndex`. effort: see `search_parameters`."""

    def __init__(self, reader: MilvusReader, effort: int | None) -> None:
        self.reader, self.rows, self.effort = reader, reader.collection.count, effort

    def search(self, queries: NDArray[np.float32], k: int, permitted: Permitted | None) -> list[Neighbours]:
        """Finds exactly the k nearest items to each of (nq, D) queries, and the items that tie with the k-th.

        permitted: the items to search; None for all.
        In a collection with an approximate index, all permitted items are fetched, to be searched exactly. Raises
        UsageError for such a collection if `permitted` is None or has more than DIRECT items.
        """
        kind = self.reader.collection.kind
        if kind not in EXACT and (permitted is None or len(permitted) > DIRECT):
            raise UsageError(
                f"{self.reader.client.address} has a {kind} index, which does not search exactly",
                hint="use a collection with a FLAT index, which is exact",
                shell_hint="use a collection with a FLAT index, which is exact; see `simsearch push --index-type`",
            )
        return self.candidates(queries, k, permitted)

    def candidates(self, queries: NDArray[np.float32], k: int, permitted: Permitted | None) -> list[Neighbours]:
        """Finds the k nearest items, and items that tie with the k-th, among the candidates from Milvus's index.

        Raises UsageError if k is above the largest number of matches that Milvus can return, or if a query's squared
        length is too large for float32.
        """
        available = self.rows if permitted is None else len(permitted)
        k = min(k, available)
        if k == 0 or not len(queries):
            return [Neighbours(np.zeros(0, np.int64), np.zeros(0))] * len(queries)
        if k > LARGEST:
            raise UsageError(f"{k:,} matches are more than the {LARGEST:,} that Milvus gives")
        if not np.all(squared_norms(queries, np.float64) < 1e37):
            raise UsageError("the vector's values are too large: Milvus computes distances in float32")
        where = "" if permitted is None else permitted.where
        if self.reader.collection.kind not in EXACT and permitted is not None and available <= DIRECT:
            return [self._measure(query, where, k) for query in queries]
        found: dict[int, Neighbours] = {}
        pending, width = list(range(len(queries))), min(k + NEAR, available, LARGEST)
        while pending:
            unsettled = []
            for number, hits in zip(pending, self._ask(queries[pending], width, where), strict=True):
                self.reader.keep(hits)
                if len(hits) < k and available <= LARGEST:  # a graph may not reach all permitted items
                    found[number] = self._measure(queries[number], where, k)
                    continue
                found[number] = self.rank(queries[number], np.array([hit.id for hit in hits], np.int64), k)
                if len(hits) == width < min(available, LARGEST) and _doubtful(queries[number], hits, found[number], k):
                    unsettled.append(number)  # because of rounding, an equally near item may be missing
            pending, width = unsettled, min(4 * width, available, LARGEST)
        return [found[number] for number in range(len(queries))]

    def _ask(self, queries: NDArray[np.float32], width: int, where: str) -> list[list[Hit]]:
        """Returns `width` candidates for each query from Milvus, asked for in portions that fit into one answer.

        where: the Milvus expression that the candidates meet; "" for all items.
        """
        step = max(1, ANSWER // width)
        parameters = search_parameters(self.reader.collection.kind, width, self.effort)
        hits: list[list[Hit]] = []
        for start in range(0, len(queries), step):
            hits += self.reader.client.search(queries[start : start + step], width, where, parameters)
        return hits

    def read(self, ids: NDArray[np.int64]) -> NDArray[np.float16]:
        """Reads the features of items in the given order: (n, D) float16."""
        return self.reader.features.read(ids)

    def rank(self, query: NDArray[np.float32], ids: NDArray[np.int64], k: int) -> Neighbours:
        """Returns the k nearest of the given items by exact distance, and the items that tie with the k-th."""
        return rank_exact(query, ids, self.read(ids), k) if len(ids) else Neighbours(ids, np.zeros(0))

    def _measure(self, query: NDArray[np.float32], where: str, k: int) -> Neighbours:
        """Fetches all items that meet the Milvus expression `where`; returns the k nearest by exact distance."""
        rows = self.reader.client.scan(where, [], int(self.reader.collection.state["highest"]))
        ids = np.array([int(row["id"]) for part in rows for row in part], np.int64)
        best = Neighbours(ids[:0], np.zeros(0))
        for start in range(0, len(ids), 1024):
            best = self.rank(query, np.concatenate([best.rows, ids[start : start + 1024]]), k)
        return best


class _Approximate:
    """An `ApproximateSearch` that uses Milvus's index. A search with `exact=True` uses `_Flat.search` instead."""

    def search(
        self, flat: _Flat, queries: NDArray[np.float32], k: int, permitted: Permitted | None
    ) -> list[Neighbours]:
        return flat.candidates(queries, k, permitted)

    def can_answer(self, flat: _Flat, k: int, permitted: Permitted | None) -> bool:
        return permitted is None or len(permitted) > DIRECT


def _doubtful(query: NDArray[np.float32], hits: Sequence[Hit], found: Neighbours, k: int) -> bool:
    """Returns True if the candidates may lack a match, because Milvus rounds distances.

    This is possible if the k-th match is almost as far from the query as the last candidate. hits: the candidates.
    found: their exact distances.
    """
    last = hits[-1]
    lengths = float(np.dot(query, query)) + float(np.dot(last.features, last.features.astype(np.float64)))
    return bool(found.distances[k - 1] ** 2 >= last.squared_distance - ROUNDING / 8 * lengths)


class MilvusIndex:
    """An open collection, with the interface of `storage.index.Index`. roots: as for `Index`.

    Raises IndexNotFoundError, UnavailableError, MissingExtraError.
    """

    folder = None  # has no files: features with components cannot be pushed
    identity = (0,)  # constant: the next search sees every push into the collection

    def __init__(self, address: str, *, roots: Mapping[str, str] | None = None) -> None:
        self.address: MilvusAddress = parse_address(address)
        self.path = _AddressPath(str(self.address))
        self.roots = dict(roots or {})
        self.client = MilvusClient(self.address)
        self._state: CollectionState | None = None
        self._opened: dict[tuple[str, str, bool], RecordedSource] = {}
        self._lock = threading.Lock()
        try:
            properties(self.client)
            self.client.load()
            source_roots.check(self.roots, list(self.state().sources.values()))
        except BaseException:
            self.client.close()
            raise

    def identity_now(self) -> tuple[int, ...]:
        """Returns `identity`. It never changes: an open collection sees every push, and need not be opened again."""
        return self.identity

    def close(self) -> None:
        """Closes the connection and the sources. The collection cannot be used afterwards."""
        self.client.close()
        with self._lock:
            opened, self._opened = list(self._opened.values()), {}
        for source in opened:
            source.close()

    def state(self) -> CollectionState:
        """Returns the collection's properties and count; cached for `REFRESH` seconds."""
        self.client.check_open()
        with self._lock:
            known = self._state
            strong = self.client.address.consistency == "strong"
            if known is None or strong or time.monotonic() - known.read > REFRESH:
                known = self._state = CollectionState.of(self.client)
            return known

    @contextlib.contextmanager
    def reading(self) -> Iterator[MilvusReader]:
        """Opens a reader for one operation."""
        yield MilvusReader(self.client, self.state())

    @property
    def meta(self) -> Meta:
        """The `meta.json` of the index that was pushed."""
        with self._lock:
            known = self._state
        return known.meta if known is not None else self.state().meta

    @property
    def complete(self) -> bool:
        """False if the last push has not ended, so that some items may be missing or old."""
        return bool(self.state().state["complete"])

    def sources(self, reader: MilvusReader) -> Sources:
        """Returns the opened sources, with their numbers as keys."""
        with self._lock:
            opened = Sources()
            for row in reader.sources():
                place = row.kind, self.root_of(row), row.options.get("outside") is True
                opened[row.id] = self._opened.setdefault(place, RecordedSource(*place))
            return opened

    def root_of(self, row: SourceRow) -> str:
        """Returns the root of a source: from `roots`, or as it was when the index was pushed."""
        return self.roots.get(row.root, self.roots.get("", row.root))

    def info(self) -> dict[str, Any]:
        """Describes the collection in plain JSON values.

        The `recall` of an approximate index is None, because it was not measured.
        """
        with self.reading() as reader:
            own = reader.collection
            index = {key: value for key, value in self.client.index().items() if isinstance(value, str | int | float)}
            counts = reader.count_by_source()
            return {
                "path": str(self.address),
                "items": own.count,
                "failures": own.meta.failures,
                "labels": reader.label_count(),
                "label_counts": reader.value_counts("label"),
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
                "milvus": self.client.version(),
                "complete": own.state["complete"],
                "sources": [
                    {"kind": row.kind, "root": self.root_of(row), "items": counts.get(row.id, 0)}
                    for row in reader.sources()
                ],
            }


@dataclass(frozen=True)
class _Snapshot:
    """The state of a collection during one operation.

    live: as in `search.snapshot.Snapshot`; None for all rows, since a collection has no rows of deleted items.
    """

    flat: _Flat
    sources: Sources
    live: None = None


class _Snapshots:
    """The snapshots of a collection, with the interface of `search.snapshot.Snapshots`."""

    def __init__(self, index: MilvusIndex) -> None:
        self.index = index

    def reading(self) -> contextlib.AbstractContextManager[MilvusReader]:
        return self.index.reading()

    def current(self, reader: MilvusReader) -> _Snapshot:
        return _Snapshot(_Flat(reader, self.index.address.effort), self.index.sources(reader))

    def structure(self, reader: MilvusReader) -> _Approximate | None:
        return None if reader.collection.kind in EXACT else _Approximate()

    def known(self) -> None:
        """Returns None: the rows of a Milvus collection are the ids of its items, so nothing is read for them."""

    def learn(self, reader: MilvusReader, queries: int) -> None:
        """Does nothing, see `known`."""

    def exact_facts(self, reader: MilvusReader) -> dict[str, Any]:
        """Returns the part of `Engine.info` about exact search, as `search.snapshot.Snapshots.exact_facts` does."""
        return {"proved": False}

    def close(self) -> None:
        """Does nothing; there is nothing to close."""


def open_collection(
    address: str, *, model: str | Model | None = None, device: str = "auto", roots: Mapping[str, str] | None = None
) -> Engine:
    """Opens a collection as an engine for searches; the engine cannot change the collection.

    address: see `common.milvus_address`. For the other arguments see `Engine`.
    Raises IndexNotFoundError, ModelMismatchError, UnavailableError, MissingExtraError.
    """
    registry.check_device(device)
    index = MilvusIndex(address, roots=roots)
    return Engine.from_index(index, _Snapshots(index), model, device)


class _AddressPath(str):
    """An address that is used like a path. Its `name` is the name of the collection."""

    @property
    def name(self) -> str:
        return self.rpartition("/")[2]
