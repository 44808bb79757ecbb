"""One feature file as a FAISS index, without a copy.

FAISS scans the float16 rows where they lie: the shard is mapped copy-on-write, FAISS's own header for a float16
scalar-quantizer index is put into the mapping just before the first row, and `faiss.read_index` with a
`ZeroCopyIOReader` takes it from there. Nothing is copied at opening, and nothing reaches the file.
"""

from __future__ import annotations

import functools
import mmap
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from simsearch.errors import IndexDamagedError
from simsearch.storage.feature_files import PREAMBLE, FeatureFiles

if TYPE_CHECKING:
    from numpy.typing import NDArray


class MappedShard(NamedTuple):
    """Rows first to last - 1 as a FAISS index; `mapping` is what its codes lie in."""

    first: int
    last: int
    index: Any
    mapping: NDArray[np.uint8]


def open_shard(shards: FeatureFiles, shard: int, rows: int) -> MappedShard:
    """The first rows of a feature file as a FAISS index. Raises IndexDamagedError."""
    import faiss

    first = shard * shards.rows_per_shard
    length = PREAMBLE + rows * shards.row_bytes
    path = shards.path(shard)
    try:
        descriptor = shards.open(shard)
        try:
            mapped = mmap.mmap(descriptor, length, access=mmap.ACCESS_COPY)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        raise IndexDamagedError(f"{path} cannot be mapped for {rows:,} rows: {error}") from error
    header = _faiss_header(shards.dimension, rows)
    start = PREAMBLE - len(header)
    mapped[start:PREAMBLE] = header
    view = np.frombuffer(mapped, np.uint8)[start:]
    reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(view), view.size)
    index = faiss.read_index(reader)
    if (index.ntotal, index.d, index.codes.size()) != (rows, shards.dimension, rows * shards.row_bytes):
        raise IndexDamagedError(f"{path}: FAISS reads {index.ntotal} x {index.d} where {rows} rows are expected")
    return MappedShard(first, first + rows, index, view)


def _faiss_header(dimension: int, rows: int) -> bytes:
    """The bytes that precede the codes in a FAISS file of `rows` float16 vectors (see faiss/impl/index_write.cpp)."""
    import faiss

    empty = faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_L2)
    header = bytearray(faiss.serialize_index(empty).tobytes())
    struct.pack_into("<q", header, 8, rows)  # ntotal, after the four-character code and the dimension
    struct.pack_into("<Q", header, len(header) - 8, rows * 2 * dimension)  # the length of the codes
    return bytes(header)


def search_part(
    part: MappedShard, first: int, last: int, queries: NDArray[np.float32], width: int, mask: NDArray[np.bool_] | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """FAISS's nearest of the rows first to last - 1, which lie in `part`; mask: over all rows, None for all."""
    import faiss

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
    distances, rows = part.index.search(queries, width, params=parameters)
    return np.where(rows < 0, np.inf, distances).astype(np.float32), np.where(rows < 0, -1, rows + part.first)


@functools.cache
def pool() -> ThreadPoolExecutor:
    """The threads that share one query."""
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="scan")
