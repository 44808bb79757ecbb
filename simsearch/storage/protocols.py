"""Interfaces for the parts of an index that searches and reports use.

`Index` and its readers implement these protocols for an index on disk. The classes of `simsearch.cluster.milvus.index`
implement them for a Milvus collection. A row is the number under which an item's features are stored: their position in
the feature files, or in Milvus the id of the item.

Shape letters: nq queries, k neighbours, n rows, D dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from simsearch.images.sources.resolve import Sources
    from simsearch.storage.filters import Condition
    from simsearch.storage.folder import Folder
    from simsearch.storage.meta import Meta
    from simsearch.storage.reader import Item, SourceRow


class FeatureReader(Protocol):
    """Reads the features of an index by the numbers of their rows."""

    @property
    def dimension(self) -> int:
        """D, the number of values in a row."""
        ...

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """Reads the features in the given rows, in this order; returns (n, D) float16."""
        ...


class ItemReader(Protocol):
    """Queries on one snapshot of an index. `reader.Reader` documents the methods."""

    @property
    def shards(self) -> FeatureReader: ...

    def state(self, key: str) -> int: ...

    def count(self) -> int: ...

    def count_by_source(self) -> dict[int, int]: ...

    def sources(self) -> list[SourceRow]: ...

    def failures(self) -> list[tuple[int, str, str]]: ...

    def label_count(self) -> int: ...

    def value_counts(self, field: str, limit: int = -1) -> dict[str, int]: ...

    def item(self, number: int) -> Item: ...

    def ids_of(self, digest: bytes) -> list[int]: ...

    def items(self, source: int | None = None, *, conditions: Sequence[Condition] = ()) -> Iterator[Item]: ...

    def items_at(self, rows: Sequence[int]) -> dict[int, Item]: ...

    def ids_and_rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...

    def stamps(self, conditions: Iterable[Condition] = ()) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...

    def ids_at(self, rows: NDArray[np.int64]) -> dict[int, int]: ...

    def rows(self, conditions: Iterable[Condition] = ()) -> Any:
        """Returns the rows of the items that meet all conditions, in the form that `VectorSearch.search` takes.

        The type depends on the kind of index; `len` of the result is the number of rows.
        """
        ...

    def row_of(self, digest: bytes) -> int | None: ...

    def sample_ids(self, count: int) -> list[int]: ...


class VectorSearch(Protocol):
    """Exact search over the first `rows` rows of an index."""

    rows: int

    def search(self, queries: NDArray[np.float32], k: int, permitted: Any) -> list[Any]:
        """Finds the k nearest rows of each query; returns a `Neighbours` for each.

        queries: (nq, D). permitted: the rows to search, from `ItemReader.rows`; None for all rows.
        """
        ...

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """Reads the features in the given rows, in this order; returns (n, D) float16."""
        ...


class ApproximateSearch(Protocol):
    """Approximate search in an index. The methods' argument `flat` is the exact search over the same rows."""

    def search(self, flat: Any, queries: NDArray[np.float32], k: int, permitted: Any) -> list[Any]:
        """Finds approximately the k nearest rows of each query; returns a `Neighbours` for each.

        flat: the exact search over the same rows. queries: (nq, D).
        permitted: the rows to search, from `ItemReader.rows`; None for all rows.
        """
        ...

    def can_answer(self, flat: Any, k: int, permitted: Any) -> bool:
        """Returns True if `search` would search approximately with these arguments, False if exactly.

        If few rows are permitted, for example, `search` is exact: it compares the queries with all these rows.
        flat, k, permitted: as for `search`.
        """
        ...


class SearchSnapshot(Protocol):
    """The content of an index as searches see it; later commits do not change it. See `snapshot.Snapshot`."""

    @property
    def flat(self) -> VectorSearch: ...

    @property
    def live(self) -> NDArray[np.int64] | None: ...

    @property
    def sources(self) -> Sources: ...


class KnownRows(NamedTuple):
    """The parts of one state of an index with which it can be searched for ids, without reading its database.

    flat: the exact search. structure: the approximate search, if there is one.
    live: the rows that belong to items, ascending; None if all rows do.
    ids: (rows,) the id of the item in each row; -1 for a row that belongs to no item.
    """

    flat: VectorSearch
    structure: ApproximateSearch | None
    live: NDArray[np.int64] | None
    ids: NDArray[np.int64]


class OpenIndex(Protocol):
    """An index that is open: on disk (`storage.index.Index`) or in Milvus (`milvus.index.MilvusIndex`)."""

    @property
    def path(self) -> Path | Any: ...

    @property
    def meta(self) -> Meta: ...

    @property
    def roots(self) -> Mapping[str, str]: ...

    @property
    def folder(self) -> Folder | None:
        """The folder of the index; None for a Milvus collection."""
        ...

    @property
    def identity(self) -> tuple[int, ...]:
        """Numbers that distinguish this index from all other indexes."""
        ...

    def identity_now(self) -> tuple[int, ...] | None:
        """Returns the `identity` of the index that is now at the path; None if there is no index."""
        ...

    def reading(self) -> AbstractContextManager[Any]:
        """Returns a context manager that yields an `ItemReader` on one snapshot."""
        ...

    def sources(self, reader: Any) -> Sources:
        """Returns the sources (folders, archives and the like) of the reader's snapshot; the keys are their numbers."""
        ...

    def root_of(self, row: SourceRow) -> str:
        """Returns the current location of a source."""
        ...

    def info(self) -> dict[str, Any]:
        """Returns a description of the index that consists of plain JSON values."""
        ...

    def close(self) -> None: ...


class Searchable(Protocol):
    """Gives access to the searches of an open index; implemented by `snapshot.Snapshots` for an index on disk."""

    def reading(self) -> AbstractContextManager[Any]: ...

    def current(self, reader: Any) -> SearchSnapshot:
        """Returns the `SearchSnapshot` with the same content as the reader's snapshot."""
        ...

    def structure(self, reader: Any) -> ApproximateSearch | None:
        """Returns the approximate search of the index; None if all its searches are exact."""
        ...

    def known(self) -> KnownRows | None:
        """Returns what a search for ids needs, if the index has not changed since `learn` read it; else None."""
        ...

    def learn(self, reader: Any, queries: int) -> None:
        """Reads what `known` returns, as soon as this saves time. queries: the number of queries of a search."""
        ...

    def exact_facts(self, reader: Any) -> dict[str, Any]:
        """Returns facts about how exact searches are computed, for `info`."""
        ...

    def close(self) -> None: ...
