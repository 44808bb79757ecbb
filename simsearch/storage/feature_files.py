"""Stores the features of an index on disk, in append-only files of float16 values. An index has no other copy of them.

A row has the features of one image, and row r is in file r // rows_per_shard. A file, also called a shard, starts with
a header page, followed by its rows without gaps, little-endian. A writer appends and syncs rows, then commits the
number of rows in SQLite. Rows beyond the committed number are left over from an interrupted write, and the next write
overwrites them. Readers map the files into memory.

The rows of removed items stay in the files until a compaction (`simsearch compact`): it writes new files without these
rows, commits, and deletes the old files. The number of compactions so far is part of a file's name, so that no name is
used twice. A reader that has opened the old files can still read them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import resource
import weakref
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from simsearch.errors import IndexDamagedError, SimsearchError
from simsearch.storage.folder import Folder, error_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

PREAMBLE = 4096

"""Number of bytes before the first row: one page of memory, so that rows are aligned when the file is mapped."""

ROWS_PER_SHARD = 8192

"""Number of rows in a file. Rows of 4096 values make files of 64 MiB, so that the cores can share one search."""

_MAGIC = b"simsearch features\n"

WITHOUT_HOLES = 1 << 30

"""A file with holes (parts never written) is rejected if all rows, or a derived file, have more bytes than this."""

_DESCRIPTORS = 6

"""Number of file descriptors needed per file: for each of two snapshots, one kept open, one to read, one to map."""


def allow_files(count: int) -> None:
    """Increases this process's limit of open files to `count`, or as far as the system permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError, OverflowError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class FeatureFiles:
    """The feature files that an index has from one compaction to the next. Several threads may read at once.

    folder: the folder of the files. It is kept open, so that files of another index at the same path are never used.
    dimension: D, the number of values in a row. rows_per_shard: the number of rows in a file.
    compactions: the number of compactions of the index so far, which is part of the files' names.
    """

    def __init__(
        self, folder: Folder | Path, dimension: int, rows_per_shard: int = ROWS_PER_SHARD, compactions: int = 0
    ) -> None:
        self.folder = folder if isinstance(folder, Folder) else Folder.at(folder)
        self.dimension, self.rows_per_shard, self.compactions = dimension, rows_per_shard, compactions
        self.row_bytes = 2 * dimension
        self._descriptors: dict[int, int] = {}  # open descriptors, by the number of the file
        self._closed = weakref.finalize(self, _close, self._descriptors)
        self._open_rows = 0

    def after(self, compactions: int) -> FeatureFiles:
        """Returns the feature files of the same index after `compactions` compactions in total."""
        return FeatureFiles(self.folder, self.dimension, self.rows_per_shard, compactions)

    def name(self, shard: int) -> str:
        """Returns the name of file number `shard` in the folder."""
        return f"{shard:06d}.{self.compactions}.f16" if self.compactions else f"{shard:06d}.f16"

    def path(self, shard: int) -> Path:
        """Returns the path of file number `shard`, for messages; it is wrong after the folder has moved."""
        return self.folder.path / self.name(shard)

    def keep_open(self, rows: int) -> bool:
        """Opens the files of the first `rows` rows, so that they stay readable after `compact` has deleted them.

        Returns True if all these files are open now. Also returns True if the process reaches its limit of open files:
        then this call closes the files that it opened, and `open` opens each file by its name when it is read. Returns
        False if a file cannot be opened for another reason, for example because a compaction has already deleted it.
        Raises IndexDamagedError if the rows take more than 1 GiB and a file has holes, which are parts that were never
        written. simsearch never writes files with holes, and a search in such a file would take far longer than the
        file's size on disk suggests, because holes are read as zeros.
        """
        if rows <= self._open_rows:
            return True
        allow_files(_DESCRIPTORS * -(-rows // self.rows_per_shard) + 256)
        opened: dict[int, int] = {}
        for shard, _, _ in self.spans(0, rows):
            if shard not in self._descriptors:
                try:
                    opened[shard] = self.folder.open(self.name(shard))
                except OSError as error:
                    _close(opened)
                    return error.errno in {errno.EMFILE, errno.ENFILE}
                if rows * self.row_bytes > WITHOUT_HOLES and has_holes(opened[shard]):
                    _close(opened)
                    raise IndexDamagedError(f"{self.path(shard)} has holes: parts of it were never written")
        self._descriptors.update(opened)
        self._open_rows = rows
        return True

    def open(self, shard: int) -> int:
        """Opens file number `shard` for reading; returns the descriptor, which the caller closes. Raises OSError."""
        try:
            return self.folder.open(self.name(shard))
        except FileNotFoundError:
            if shard not in self._descriptors:
                raise
            return os.dup(self._descriptors[shard])

    def spans(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """Splits the rows from `first` to `last` - 1 by file; yields (file number, start, stop) for each file.

        start, stop: the row numbers in the file; `stop` itself is not included.
        """
        while first < last:
            shard, start = divmod(first, self.rows_per_shard)
            stop = min(self.rows_per_shard, start + last - first)
            yield shard, start, stop
            first += stop - start

    def write(self, first: int, features: NDArray[np.float16]) -> int:
        """Writes (n, D) float16 features from row `first` on, and syncs the files; returns the CRC-32 of the bytes.

        Raises SimsearchError if the files cannot be written.
        """
        data = np.ascontiguousarray(features, dtype="<f2")
        done, checksum = 0, 0
        for shard, start, stop in self.spans(first, first + len(data)):
            part = data[done : done + stop - start].tobytes()
            done += stop - start
            checksum = zlib.crc32(part, checksum)
            try:
                self._write(shard, start, part)
            except OSError as error:
                raise SimsearchError(f"{self.path(shard)} cannot be written: {error.strerror}") from error
        return checksum

    def _write(self, shard: int, start: int, data: bytes) -> None:
        """Writes bytes to file number `shard`, beginning at row `start` of the file, and syncs the file."""
        # Only row 0 creates the file: a deleted file must not be recreated without its earlier rows.
        name = self.name(shard)
        descriptor = self.folder.create(name) if start == 0 else self.folder.open(name, os.O_RDWR)
        with open(descriptor, "r+b", buffering=0) as file:
            if start == 0:
                file.write(self._preamble(shard))
            elif os.pread(descriptor, PREAMBLE, 0) != self._preamble(shard):  # it may be a hard link to some other file
                raise IndexDamagedError(self._wrong_preamble(shard))
            file.seek(PREAMBLE + start * self.row_bytes)
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            os.fsync(file.fileno())
        if start == 0:
            self.folder.sync()

    def _preamble(self, shard: int) -> bytes:
        """Returns the first page of file number `shard`."""
        facts = {"dtype": "<f2", "dimension": self.dimension, "shard": shard}
        return (_MAGIC + json.dumps(facts).encode() + b"\n").ljust(PREAMBLE, b"\0")

    def map(self, shard: int, rows: int) -> NDArray[np.float16]:
        """Maps the first `rows` rows of file number `shard` into memory, read-only; returns (rows, D) float16.

        Raises IndexDamagedError if the file is missing or too short.
        """
        path, length = self.path(shard), PREAMBLE + rows * self.row_bytes
        try:
            descriptor = self.open(shard)
        except OSError as error:
            raise error_for(path, error) from error
        try:
            size = os.fstat(descriptor).st_size
            if size < length:
                raise IndexDamagedError(f"{path} has {size:,} bytes, too few for {rows:,} rows")
            mapped = mmap.mmap(descriptor, length, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
        return np.frombuffer(mapped, "<f2", rows * self.dimension, PREAMBLE).reshape(rows, self.dimension)

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """Reads the features in the given rows, in this order; returns (n, D) float16. Raises IndexDamagedError."""
        out = np.empty((len(rows), self.dimension), np.float16)
        shards = rows // self.rows_per_shard
        for shard in np.unique(shards):
            chosen = np.flatnonzero(shards == shard)
            within = rows[chosen] % self.rows_per_shard
            out[chosen] = self.map(int(shard), int(within.max()) + 1)[within]
        return out

    def checksum(self, first: int, count: int) -> int:
        """Computes the CRC-32 of `count` rows, beginning at row `first`. Raises IndexDamagedError."""
        value = 0
        for shard, start, stop in self.spans(first, first + count):
            rows = self.map(shard, stop)
            for begin in range(start, stop, 2048):
                value = zlib.crc32(rows[begin : min(begin + 2048, stop)].tobytes(), value)
        return value

    def check_preamble(self, shard: int) -> str | None:
        """Returns a message if the first page of file number `shard` is wrong, else None. Raises OSError."""
        descriptor = self.open(shard)
        try:
            page = os.pread(descriptor, PREAMBLE, 0)
        finally:
            os.close(descriptor)
        if page != self._preamble(shard):
            return self._wrong_preamble(shard)
        return None

    def _wrong_preamble(self, shard: int) -> str:
        return f"{self.path(shard)} does not begin like feature file {shard} of dimension {self.dimension}"


def no_such_row(subject: str, rows: int) -> IndexDamagedError:
    """Returns the error for a row that does not exist.

    subject: the beginning of the message, such as "an item owns row 9". rows: the number of rows of the index.
    """
    return IndexDamagedError(f"{subject} of the features, but the index has only {rows} rows, numbered from 0")


def has_holes(descriptor: int) -> bool:
    """Returns True if an open file has holes, which are parts that were never written and take no space on disk.

    Returns False if the system does not report holes.
    """
    with contextlib.suppress(AttributeError, OSError):
        size = os.fstat(descriptor).st_size
        return size > 0 and os.lseek(descriptor, 0, os.SEEK_HOLE) < size
    return False


def _close(descriptors: dict[int, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)
