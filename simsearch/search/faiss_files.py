"""Opens feature files as FAISS indexes, without copying the features.

A feature file is mapped into memory copy-on-write. The header that FAISS writes for an index of float16 vectors is put
into the mapping, just before the first row. `faiss.read_index` with a `ZeroCopyIOReader` then uses the rows in place.
The file itself does not change.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from simsearch.common import fork
from simsearch.common.lazy import LazyModule
from simsearch.errors import IndexDamagedError
from simsearch.storage.feature_files import PREAMBLE, FeatureFiles
from simsearch.storage.folder import error_for

if TYPE_CHECKING:
    import faiss
    from numpy.typing import NDArray
else:
    faiss = LazyModule("faiss")


class MappedShard(NamedTuple):
    """A feature file as a FAISS index.

    first, last: the file has the rows from `first` to `last` - 1.
    mapping: the memory with the features, which must exist as long as the index.
    """

    first: int
    last: int
    index: Any
    mapping: NDArray[np.uint8]


def open_shard(shards: FeatureFiles, shard: int, rows: int) -> MappedShard:
    """Opens the first `rows` rows of feature file number `shard` as a FAISS index.

    Raises IndexDamagedError for a damaged file, and SimsearchError for a file that cannot be read for other reasons.
    """
    first = shard * shards.rows_per_shard
    length = PREAMBLE + rows * shards.row_bytes
    path = shards.path(shard)
    try:
        descriptor = shards.open(shard)
        try:
            mapped = mmap.mmap(descriptor, length, access=mmap.ACCESS_COPY)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise error_for(path, error) from error
    except (ValueError, OverflowError) as error:
        raise IndexDamagedError(f"{path} cannot be mapped for {rows:,} rows: {error}") from error
    header = faiss_header(shards.dimension, rows)
    start = PREAMBLE - len(header)
    mapped[start:PREAMBLE] = header
    view = np.frombuffer(mapped, np.uint8)[start:]
    reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(view), view.size)
    index = faiss.read_index(reader)
    if (index.ntotal, index.d, index.codes.size()) != (rows, shards.dimension, rows * shards.row_bytes):
        raise IndexDamagedError(f"{path}: FAISS reads {index.ntotal} x {index.d} where {rows} rows are expected")
    return MappedShard(first, first + rows, index, view)


def faiss_header(dimension: int, rows: int) -> bytes:
    """Returns the header of a FAISS file of `rows` float16 vectors (see faiss/impl/index_write.cpp)."""
    empty = faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_L2)
    header = bytearray(faiss.serialize_index(empty).tobytes())
    struct.pack_into("<q", header, 8, rows)  # ntotal, after the four-character code and the dimension
    struct.pack_into("<Q", header, len(header) - 8, rows * 2 * dimension)  # the length of the codes
    return bytes(header)


def search_part(
    part: MappedShard, first: int, last: int, queries: NDArray[np.float32], width: int, mask: NDArray[np.bool_] | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Finds the rows nearest to each query among the rows `first` to `last` - 1, which are all in `part`.

    Returns the squared distances and the row numbers, both (nq, width); if the range has fewer rows than `width`, there
    is a column for each of its rows. If the mask excludes rows, fewer rows may be found than there are columns. The
    columns left over then have the distance inf and the row number -1.
    mask: for each row of the whole index, True if it may be returned; None for all.
    """
    width = min(width, last - first)
    start, stop = first - part.first, last - part.first
    selector: Any = None
    if mask is not None:
        allowed = np.zeros(part.last - part.first, bool)
        allowed[start:stop] = mask[first:last]
        bits = np.packbits(allowed, bitorder="little")
        selector = faiss.IDSelectorBitmap(bits)
    elif last - first < part.last - part.first:
        selector = faiss.IDSelectorRange(start, stop)
    parameters = None if selector is None else faiss.SearchParameters(sel=selector)
    with OneThread() if len(queries) == 1 else contextlib.nullcontext():
        distances, rows = part.index.search(queries, width, params=parameters)
    return np.where(rows < 0, np.inf, distances).astype(np.float32), np.where(rows < 0, -1, rows + part.first)


class OneThread:
    """A context manager in which FAISS uses one thread for calls from the current thread.

    Outside it, FAISS starts all its threads even for a single query, and then waits for each of them. This takes
    milliseconds when other programs use the cores.
    """

    def __enter__(self) -> None:
        self._before = faiss.omp_get_max_threads()  # for the current thread
        faiss.omp_set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        faiss.omp_set_num_threads(self._before)


@functools.cache
def pool() -> ThreadPoolExecutor:
    """Returns the thread pool for searches, which has a thread for each core."""
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="scan")


fork.in_child(pool.cache_clear)
