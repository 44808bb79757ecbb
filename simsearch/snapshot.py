"""What one generation of an index holds, and the small pieces a search is put together from."""

from __future__ import annotations

import fnmatch
import glob
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from simsearch import sources
from simsearch.errors import ImageError, UsageError
from simsearch.index import FlatIndex, Neighbours

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Snapshot:
    """What one generation of the index holds. live: the rows that items own, or None if all do."""

    generation: int
    flat: FlatIndex
    live: NDArray[np.int64] | None
    sources: dict[int, sources.Source]


class RecordedSource(sources.Source):
    """A source known from the index; its container is opened when an image of it is first read."""

    def __init__(self, kind: str, root: str) -> None:
        super().__init__(root)
        self.kind = kind
        self._opened: sources.Source | None = None
        self._lock = threading.Lock()

    def _source(self) -> sources.Source:
        with self._lock:
            if self._opened is None:
                try:
                    self._opened = sources.reopen(self.kind, self.root)
                except UsageError as error:
                    raise ImageError(str(error), hint=error.hint) from error
            return self._opened

    def listing(self, exclude: Sequence[str] = ()) -> sources.Listing:
        return self._source().listing(exclude)

    def read(self, path: str) -> bytes:
        return self._source().read(path)

    def display(self, path: str) -> str:
        return sources.display(self.kind, self.root, path)


def merge(variants: list[Neighbours]) -> Neighbours:
    """The nearest of several variants of a query, for each row."""
    if len(variants) == 1:
        return variants[0]
    best: dict[int, float] = {}
    for rows, distances in variants:
        for row, distance in zip(rows.tolist(), distances.tolist(), strict=True):
            best[row] = min(distance, best.get(row, np.inf))
    order = sorted(best, key=lambda row: best[row])
    return Neighbours(np.array(order, np.int64), np.array([best[row] for row in order]))


def blend(query: NDArray[np.float32], plus: NDArray[np.float32], minus: NDArray[np.float32]) -> NDArray[np.float32]:
    """Relevance feedback (Rocchio 1971): the mean of what is wanted, moved half a step away from what is not.

    Activations are not negative, so neither is the result.
    """
    wanted: NDArray[np.float32] = np.concatenate([query[None], plus]).mean(0, dtype=np.float32)
    if len(minus):
        wanted = np.maximum(wanted + np.float32(0.5) * (wanted - minus.mean(0, dtype=np.float32)), 0)
    return wanted


def matcher(name: str) -> Callable[[str, str], bool]:
    """Whether a name (a path, a folder or a glob) means an item, given as printed and relative to its source."""
    full = os.path.abspath(os.path.expanduser(name))
    if glob.has_magic(name) and not os.path.exists(name):
        return lambda shown, relative: (
            any(fnmatch.fnmatchcase(path, name) for path in (shown, relative)) or (fnmatch.fnmatchcase(shown, full))
        )
    return lambda shown, relative: name in {shown, relative} or shown == full or shown.startswith(full + os.sep)
