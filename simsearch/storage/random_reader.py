"""Rows of the feature files read by position: they count as the system's cache and not as this process's memory.

A page of a mapped file that was touched once belongs to the process until somebody else needs the room, and its
neighbours are mapped along with it: ranking a few rows of each query would in time map the whole index.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING

import numpy as np

from simsearch.errors import IndexDamagedError
from simsearch.storage.feature_files import PREAMBLE, FeatureFiles

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

FEW = 512
"""Up to this many rows are read one by one, without looking for rows that follow each other."""


class RandomReader:
    """The first `count` rows of some shards. Safe for many threads. Raises IndexDamagedError."""

    def __init__(self, shards: FeatureFiles, count: int) -> None:
        self.shards, self.count = shards, count
        self._files: list[int] = []
        self._closed = weakref.finalize(self, _close, self._files)
        for shard, _, _ in shards.spans(0, count):
            try:
                self._files.append(shards.open(shard))
            except OSError as error:
                raise IndexDamagedError(f"{shards.path(shard)} cannot be opened: {error.strerror}") from error
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self._files[-1], 0, 0, os.POSIX_FADV_RANDOM)

    def read(self, rows: NDArray[np.int64], out: NDArray[np.float16] | None = None) -> NDArray[np.float16]:
        """The given rows, in that order: (n, D) float16; in `out`, if that is given."""
        if out is None:
            out = np.empty((len(rows), self.shards.dimension), np.float16)
        if not len(rows):
            return out
        if not 0 <= rows.min() <= rows.max() < self.count:
            raise IndexDamagedError(f"rows {rows.min()} to {rows.max()} are asked for, but there are {self.count}")
        size, per_shard = self.shards.row_bytes, self.shards.rows_per_shard
        view = out.data.cast("B")
        for place, row, length in _runs(rows, per_shard):
            shard, within = divmod(row, per_shard)
            part = view[place * size : (place + length) * size]
            offset = PREAMBLE + within * size
            while part:
                try:
                    got = os.preadv(self._files[shard], [part], offset)
                except OSError as error:
                    raise IndexDamagedError(f"{self.shards.path(shard)}: {error.strerror}") from error
                if not got:
                    raise IndexDamagedError(f"{self.shards.path(shard)} ends before row {row}")
                part, offset = part[got:], offset + got
        return out


def _runs(rows: NDArray[np.int64], per_shard: int) -> Iterator[tuple[int, int, int]]:
    """(place, row, length) of each run of rows that follow each other in one file."""
    if len(rows) <= FEW and not (len(rows) > 1 and rows[-1] - rows[0] == len(rows) - 1):
        yield from ((place, row, 1) for place, row in enumerate(rows.tolist()))
        return
    starts = np.flatnonzero((np.diff(rows, prepend=-2) != 1) | (rows % per_shard == 0))
    lengths = np.diff(starts, append=len(rows))
    yield from zip(starts.tolist(), rows[starts].tolist(), lengths.tolist(), strict=True)


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
