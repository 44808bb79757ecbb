"""What one generation of an index holds."""

from __future__ import annotations

import fnmatch
import glob
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simsearch import opening, sources
from simsearch.errors import ImageError, IndexDamagedError, UsageError
from simsearch.index import FlatIndex

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Sources(dict[int, sources.Source]):
    """The sources of an index by number."""

    def __missing__(self, number: int) -> sources.Source:
        raise IndexDamagedError(f"items.sqlite: an item belongs to source {number}, which is not there")


@dataclass(frozen=True)
class Snapshot:
    """What one generation of the index holds. live: the rows that items own, or None if all do."""

    generation: int
    flat: FlatIndex
    live: NDArray[np.int64] | None
    sources: Sources


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
                    self._opened = opening.reopen(self.kind, self.root)
                except UsageError as error:
                    raise ImageError(str(error), hint=error.hint) from error
            return self._opened

    def listing(self, exclude: Sequence[str] = ()) -> sources.Listing:
        return self._source().listing(exclude)

    def read(self, path: str) -> bytes:
        return self._source().read(path)

    def close(self) -> None:
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    def display(self, path: str) -> str:
        return sources.display(self.kind, self.root, path)


def matcher(name: str) -> Callable[[str, str], bool]:
    """Whether a name (a path, a folder, an archive or a glob) means an item, given as printed and as stored."""
    if not name:
        raise UsageError("an empty name means no item", hint="a path, id:N, or a glob in quotes")
    full = os.path.abspath(os.path.expanduser(name))
    inside = full + os.sep, full + sources.SEPARATOR

    def plain(shown: str, relative: str) -> bool:
        return name in {shown, relative} or shown == full or shown.startswith(inside)

    if not glob.has_magic(name) or os.path.exists(name):
        return plain
    return lambda shown, relative: (
        plain(shown, relative)
        or fnmatch.fnmatchcase(shown, name)
        or fnmatch.fnmatchcase(relative, name)
        or fnmatch.fnmatchcase(shown, full)
    )
