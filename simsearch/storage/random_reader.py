"""Reads single rows of the feature files, without mapping the files into memory.

If a row of a mapped file is read, its pages and neighbouring pages become part of the process's memory. If each query
read a few rows in this way, the whole index would be in the process's memory in the end. This module reads rows with
`os.preadv` instead: the pages stay in the system's file cache, which does not count as memory of the process.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING

import numpy as np

from simsearch.errors import IndexDamagedError
from simsearch.storage.feature_files import PREAMBLE, FeatureFiles, no_such_row
from simsearch.storage.folder import error_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

FEW = 512
"""A call for at most this many rows reads them one by one, unless they are a single run of consecutive rows."""


class RandomReader:
    """Reads any of the first `count` rows of the feature files. Safe for many threads.

    Raises IndexDamagedError if a file is missing or too short.
    """

    def __init__(self, shards: FeatureFiles, count: int) -> None:
        self.shards, self.count = shards, count
        self._files: list[int] = []
        self._closed = weakref.finalize(self, _close, self._files)
        for shard, _, _ in shards.spans(0, count):
            try:
                self._files.append(shards.open(shard))
            except OSError as error:
                raise error_for(shards.path(shard), error) from error
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self._files[-1], 0, 0, os.POSIX_FADV_RANDOM)

    def read(self, rows: NDArray[np.int64], out: NDArray[np.float16] | None = None) -> NDArray[np.float16]:
        """Reads the features in the given rows, in this order; returns (n, D) float16.

        out: the array to write to; a new array by default.
        """
        if out is None:
            out = np.empty((len(rows), self.shards.dimension), np.float16)
        if not len(rows):
            return out
        few = len(rows) <= FEW and not (len(rows) > 1 and rows[-1] - rows[0] == len(rows) - 1)
        numbers = rows.tolist() if few else (int(rows.min()), int(rows.max()))
        if not 0 <= min(numbers) <= max(numbers) < self.count:
            raise no_such_row(f"a search needs rows {min(numbers)} to {max(numbers)}", self.count)
        size, per_shard = self.shards.row_bytes, self.shards.rows_per_shard
        view = out.data.cast("B")
        if few:  # one by one, without calling a Python function for each row: a search may read several hundred rows
            files, begin = self._files, 0
            for row in numbers:
                shard, within = divmod(row, per_shard)
                offset = PREAMBLE + within * size
                try:
                    got = os.preadv(files[shard], (view[begin : begin + size],), offset)
                except OSError as error:
                    raise error_for(self.shards.path(shard), error) from error
                if got != size:
                    self._read_run(view[begin + got : begin + size], shard, offset + got)
                begin += size
            return out
        for place, row, length in _runs(rows, per_shard):
            shard, within = divmod(row, per_shard)
            self._read_run(view[place * size : (place + length) * size], shard, PREAMBLE + within * size)
        return out

    def _read_run(self, part: memoryview, shard: int, offset: int) -> None:
        """Fills `part` with the bytes of file number `shard` from `offset` on."""
        while part:
            try:
                got = os.preadv(self._files[shard], [part], offset)
            except OSError as error:
                raise error_for(self.shards.path(shard), error) from error
            if not got:
                row = shard * self.shards.rows_per_shard + (offset - PREAMBLE) // self.shards.row_bytes
                raise IndexDamagedError(f"{self.shards.path(shard)} ends before row {row}")
            part, offset = part[got:], offset + got


def _runs(rows: NDArray[np.int64], per_shard: int) -> Iterator[tuple[int, int, int]]:
    """Yields (position, row, length) for each run of consecutive rows that are in one file.

    row: the run's first row. position: the index of this row in `rows`. per_shard: the number of rows in a file.
    """
    starts = np.flatnonzero((np.diff(rows, prepend=-2) != 1) | (rows % per_shard == 0))
    lengths = np.diff(starts, append=len(rows))
    yield from zip(starts.tolist(), rows[starts].tolist(), lengths.tolist(), strict=True)


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
