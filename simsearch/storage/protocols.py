"""The parts of an index that searches and reports use, so that a collection on a server can stand in for one on disk.

`Index` and its readers have them all; so have the classes of `simsearch.cluster.milvus.engine`, where an item's id
is its row.

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
        """The given rows, in that order: (n, D) float16."""
        ...


class ItemReader(Protocol):
    """Questions to one snapshot of an index; `reader.Reader` says what each answers."""

    @property
    def shards(self) -> FeatureReader: ...

    def state(self, key: str) -> int: ...

    def count(self) -> int: ...

    def counts(self) -> dict[int, int]: ...

    def sources(self) -> list[SourceRow]: ...

    def failures(self) -> list[tuple[int, str, str]]: ...

    def label_count(self) -> int: ...

    def item(self, number: int) -> Item: ...

    def items(self, source: int | None = None) -> Iterator[Item]: ...

    def items_at(self, rows: Sequence[int]) -> dict[int, Item]: ...

    def ids(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...

    def ids_at(self, rows: NDArray[np.int64]) -> dict[int, int]: ...

    def rows(self, conditions: Iterable[Condition] = ()) -> Any:
        """What a search may find; only its length and `VectorSearch.search` tell anything of it."""
        ...

    def row_of(self, digest: bytes) -> int | None: ...

    def spread(self, count: int) -> list[int]: ...


class VectorSearch(Protocol):
    """Exact search over the first `rows` rows."""

    rows: int

    def search(self, queries: NDArray[np.float32], k: int, permitted: Any) -> list[Any]:
        """The `Neighbours` of each of (nq, D) queries: the k nearest rows. permitted: of `ItemReader.rows`, or None."""
        ...

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """The given rows, in that order: (n, D) float16."""
        ...


class ApproximateSearch(Protocol):
    """Search by a structure that names candidates. flat: the exact search over the same rows."""

    def search(self, flat: Any, queries: NDArray[np.float32], k: int, permitted: Any) -> list[Any]:
        """About the k nearest rows to each of (nq, D) queries, as `VectorSearch.search` gives them."""
        ...

    def serves(self, flat: Any, k: int, permitted: Any) -> bool:
        """True if `search` is approximate for so many rows."""
        ...


class SearchSnapshot(Protocol):
    """What one generation of an index holds; see `snapshot.Snapshot`."""

    @property
    def flat(self) -> VectorSearch: ...

    @property
    def live(self) -> NDArray[np.int64] | None: ...

    @property
    def sources(self) -> Sources: ...


class OpenIndex(Protocol):
    """An index that is open: on disk (`storage.index.Index`) or in Milvus (`engine.MilvusIndex`)."""

    @property
    def path(self) -> Path | Any: ...

    @property
    def meta(self) -> Meta: ...

    @property
    def roots(self) -> Mapping[str, str]: ...

    @property
    def folder(self) -> Folder | None:
        """Where it keeps its files; None for a collection."""
        ...

    @property
    def identity(self) -> tuple[int, ...]:
        """What tells it from any other index."""
        ...

    def identity_now(self) -> tuple[int, ...] | None:
        """The identity of what is now at its path; None if there is nothing."""
        ...

    def reading(self) -> AbstractContextManager[Any]:
        """An `ItemReader` of one snapshot."""
        ...

    def sources(self, reader: Any) -> Sources:
        """Its sources by number, as of the reader's snapshot."""
        ...

    def root_of(self, row: SourceRow) -> str:
        """Where a source is now."""
        ...

    def info(self) -> dict[str, Any]:
        """What is in it, as plain JSON values."""
        ...

    def close(self) -> None: ...


class Searchable(Protocol):
    """What searches an open index; `snapshot.Snapshots` for one on disk."""

    def reading(self) -> AbstractContextManager[Any]: ...

    def current(self, reader: Any) -> SearchSnapshot:
        """The snapshot that belongs to the reader's."""
        ...

    def structure(self, reader: Any) -> ApproximateSearch | None:
        """What searches approximately; None if every search is exact."""
        ...

    def close(self) -> None: ...
