"""The parts of an index that searches and reports use, so that a Milvus collection can take the place of files.

`Index` and its readers implement these protocols, and so do the classes of `simsearch.cluster.milvus.index`, which use
the id of an item as its row.

Letters: nq queries, k neighbours, n rows, D dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from simsearch.images.sources.resolve import Sources
    from simsearch.storage.filters import Condition
    from simsearch.storage.folder import Folder
    from simsearch.storage.meta import Meta
    from simsearch.storage.reader import Item, SourceRow


class FeatureReader(Protocol):
    """Features by row."""

    @property
    def dimension(self) -> int:
        """D."""
        ...

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """Reads the given rows, in this order: (n, D) float16."""
        ...


class ItemReader(Protocol):
    """Queries on one snapshot of an index; documented in `reader.Reader`."""

    @property
    def shards(self) -> FeatureReader: ...

    def state(self, key: str) -> int: ...

    def count(self) -> int: ...

    def count_by_source(self) -> dict[int, int]: ...

    def sources(self) -> list[SourceRow]: ...

    def failures(self) -> list[tuple[int, str, str]]: ...

    def label_count(self) -> int: ...

    def item(self, number: int) -> Item: ...

    def ids_of(self, digest: bytes) -> list[int]: ...

    def items(self, source: int | None = None, *, conditions: Sequence[Condition] = ()) -> Iterator[Item]: ...

    def items_at(self, rows: Sequence[int]) -> dict[int, Item]: ...

    def ids_and_rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...

    def stamps(self, conditions: Iterable[Condition] = ()) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...

    def ids_at(self, rows: NDArray[np.int64]) -> dict[int, int]: ...

    def rows(self, conditions: Iterable[Condition] = ()) -> Any:
        """Returns the rows of items that meet all conditions, for `VectorSearch.search`; the result has a length."""
        ...

    def row_of(self, digest: bytes) -> int | None: ...

    def sample_ids(self, count: int) -> list[int]: ...


class VectorSearch(Protocol):
    """Exact search over the first `rows` rows."""

    rows: int

    def search(self, queries: NDArray[np.float32], k: int, permitted: Any) -> list[Any]:
        """Returns the `Neighbours` (k nearest rows) of each of (nq, D) queries.

        permitted: from `ItemReader.rows`; None for all rows.
        """
        ...

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """Reads the given rows, in this order: (n, D) float16."""
        ...


class ApproximateSearch(Protocol):
    """Approximate search. flat: the exact search over the same rows."""

    def search(self, flat: Any, queries: NDArray[np.float32], k: int, permitted: Any) -> list[Any]:
        """Returns the approximate k nearest rows of each of (nq, D) queries, as `VectorSearch.search` does."""
        ...

    def can_answer(self, flat: Any, k: int, permitted: Any) -> bool:
        """Returns True if `search` is approximate for these arguments."""
        ...


class SearchSnapshot(Protocol):
    """The content of an index at one generation; see `snapshot.Snapshot`."""

    @property
    def flat(self) -> VectorSearch: ...

    @property
    def live(self) -> NDArray[np.int64] | None: ...

    @property
    def sources(self) -> Sources: ...


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
        """Values that distinguish the index from any other."""
        ...

    def identity_now(self) -> tuple[int, ...] | None:
        """Returns the identity of the index that is now at the path; None if there is none."""
        ...

    def reading(self) -> AbstractContextManager[Any]:
        """Opens an `ItemReader` on one snapshot."""
        ...

    def sources(self, reader: Any) -> Sources:
        """Returns the sources by number, as of the reader's snapshot."""
        ...

    def root_of(self, row: SourceRow) -> str:
        """Returns the current location of a source."""
        ...

    def info(self) -> dict[str, Any]:
        """Describes the index in plain JSON values."""
        ...

    def close(self) -> None: ...


class Searchable(Protocol):
    """The searches of an open index; `snapshot.Snapshots` for an index on disk."""

    def reading(self) -> AbstractContextManager[Any]: ...

    def current(self, reader: Any) -> SearchSnapshot:
        """Returns the search snapshot of the reader's generation."""
        ...

    def structure(self, reader: Any) -> ApproximateSearch | None:
        """Returns the approximate search; None if every search is exact."""
        ...

    def exact_facts(self, reader: Any) -> dict[str, Any]:
        """Describes how exact searches are computed, for `info`."""
        ...

    def close(self) -> None: ...
