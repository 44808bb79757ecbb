"""Reads and checks the files of an approximate search, and updates the row numbers in them after a compaction.

A compaction removes deleted rows from the feature files, which changes the numbers of the other rows. `rows.npy` has
the row number of each entry when the FAISS index was built; `rows.<n>.npz` has the row numbers after n compactions.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from simsearch.common.lazy import LazyModule
from simsearch.common.pca import Projection
from simsearch.errors import IndexDamagedError
from simsearch.search.ann import LISTED, AnnIndex, AnnSettings
from simsearch.storage import derived as sealed

if TYPE_CHECKING:
    import faiss
    from numpy.typing import NDArray

    from simsearch.storage.folder import Folder
else:
    faiss = LazyModule("faiss")

_EPOCH_ROWS = re.compile(r"rows\.\d+\.npz")

UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, EOFError, BadZipFile, MemoryError)
"""The errors that damaged files can cause while they are read."""


def load(folder: Folder, parameters: dict[str, Any], compactions: int = 0) -> AnnIndex:
    """Loads the approximate search that `AnnIndex.save` wrote.

    parameters: those that `AnnIndex.save` returned.
    compactions: the number of compactions of the feature files so far.
    Raises IndexDamagedError for damaged files, and SimsearchError for files that cannot be read for other reasons.
    """
    try:
        setting = read_settings(parameters)
        mean, axes = (sealed.read_array(folder, f"{part}.npy") for part in ("mean", "axes"))
        if {str(mean.dtype), str(axes.dtype)} != {"float32"} or axes.shape != (len(mean), setting.dimensions):
            raise ValueError("its projection has a wrong shape or dtype")
        if not (np.isfinite(mean).all() and np.isfinite(axes).all()):
            raise ValueError("its projection has a NaN or infinite value")
        rows, covered = _rows(folder, parameters, compactions)
        check_rows(rows, covered)
        data = sealed.read(folder, "index.faiss")
        index = faiss.read_index(faiss.ZeroCopyIOReader(faiss.swig_ptr(data), data.size))
        check_faiss_index(index, setting, len(rows))
        made = AnnIndex(setting, Projection(mean, axes), index, rows, covered, compactions)
        made.data = data
        return made
    except UNREADABLE as error:
        raise IndexDamagedError(f"the approximate search in {folder.path} cannot be used: {error}") from error


def read_settings(parameters: dict[str, Any]) -> AnnSettings:
    """Returns the settings in `parameters`. Raises KeyError if one is missing, ValueError if one is out of range."""
    setting = AnnSettings(**{name: parameters[name] for name in AnnSettings.__dataclass_fields__})
    numbers = setting.dimensions, setting.candidates, setting.effort, parameters["covered"], parameters.get("epoch", 0)
    if not isinstance(setting.kind, str) or not all(type(n) is int and 0 <= n < 1 << 40 for n in numbers):
        raise ValueError("its parameters in meta.json are out of range")
    if not (0 < setting.dimensions <= 1 << 16 and 0 < setting.candidates < 1 << 24 and setting.effort < 1 << 24):
        raise ValueError("its parameters in meta.json are out of range")
    return setting


def check_rows(rows: NDArray[Any], covered: int) -> None:
    """Raises ValueError if `rows` are not valid row numbers of entries.

    Each must be -1, for a removed row, or else a number from 0 to `covered` - 1 that no other entry has.
    """
    if rows.dtype != np.int64 or rows.ndim != 1:
        raise ValueError("its row numbers are not a list of integers")
    live = rows[rows >= 0]
    if len(live) and live.max() >= covered:
        raise ValueError(f"it has the row number {live.max()}, but covers only {covered} rows")
    if len(rows) and rows.min() < -1:
        raise ValueError(f"it has the row number {rows.min()}; only -1, for a removed row, may be below 0")
    if len(np.unique(live)) < len(live):
        raise ValueError("it has the same row twice")


def check_faiss_index(index: Any, setting: AnnSettings, entries: int) -> None:
    """Raises ValueError if a loaded FAISS index does not match `setting`, or contains references out of range.

    FAISS itself follows a reference without checking it.
    entries: the number of entries that the index must have.
    """
    expected = {
        "hnsw": "IndexHNSWSQ",
        "ivf": "IndexIVFScalarQuantizer",
        "pq": "IndexIVFPQFastScan",
        "sq8": "IndexScalarQuantizer",
        "rabitq": "IndexRaBitQ",
    }
    if type(index).__name__ != expected.get(setting.kind):
        raise ValueError(f"its FAISS index is {type(index).__name__}, which does not fit the kind {setting.kind}")
    if (index.ntotal, index.d, index.metric_type) != (entries, setting.dimensions, faiss.METRIC_L2):
        raise ValueError("its files do not belong together")
    if setting.kind in LISTED:
        quantizer = faiss.downcast_index(index.quantizer)
        if type(quantizer).__name__ != "IndexFlatL2" or (quantizer.ntotal, quantizer.d) != (index.nlist, index.d):
            raise ValueError("its lists do not match their centroids")
        sizes = sum(index.invlists.list_size(number) for number in range(index.nlist))
        if index.invlists.nlist != index.nlist or sizes != entries:
            raise ValueError("its lists do not match its vectors")
    elif setting.kind == "hnsw":
        graph, storage = index.hnsw, index.storage
        neighbours, offsets = faiss.vector_to_array(graph.neighbors), faiss.vector_to_array(graph.offsets)
        sizes = len(offsets) - 1, graph.levels.size(), storage.ntotal, storage.d
        if (
            sizes != (entries, entries, entries, index.d)
            or (offsets[0], offsets[-1]) != (0, len(neighbours))
            or (offsets[1:] < offsets[:-1]).any()
            or not -1 <= graph.entry_point < entries
            or (len(neighbours) and not -1 <= neighbours.min() <= neighbours.max() < entries)
        ):
            raise ValueError("its graph does not match its vectors")


def _rows(folder: Folder, parameters: dict[str, Any], compactions: int) -> tuple[NDArray[np.int64], int]:
    """Reads the row number of each entry after `compactions` compactions.

    Also returns the number of rows in the feature files when the FAISS index was built.
    parameters: those that `AnnIndex.save` returned.
    """
    if compactions == parameters.get("epoch", 0):
        return sealed.read_array(folder, "rows.npy"), int(parameters["covered"])
    arrays = sealed.read_arrays(folder, f"rows.{compactions}.npz")
    return arrays["rows"], int(arrays["covered"])


def renumber(folder: Folder, parameters: dict[str, Any], live: NDArray[np.int64], old: int, new: int) -> None:
    """Writes the row numbers that the entries have after a compaction.

    The row numbers before the compaction stay on disk for processes that still read the old feature files. Older row
    numbers are deleted.
    parameters: those that `AnnIndex.save` returned.
    live: (n,) the rows that the compaction keeps, ascending.
    old, new: the number of compactions before and after this one.
    Raises IndexDamagedError, or one of the errors in UNREADABLE, if the row numbers before the compaction cannot be
    read.
    """
    rows, covered = _rows(folder, parameters, old)
    record(folder, old, new, rows=moved(rows, live), covered=np.searchsorted(live, covered))


def moved(rows: NDArray[np.int64], live: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the number that each of (n,) rows has after a compaction; -1 for a row that the compaction removes.

    live: the rows that the compaction keeps, ascending.
    """
    places = np.searchsorted(live, rows)
    kept = np.append(live, -2)[places] == rows
    return np.where(kept, places, -1)


def record(folder: Folder, old: int, new: int, **arrays: Any) -> None:
    """Writes arrays to `rows.<new>.npz`, the file for the state after `new` compactions.

    Keeps the file for the state after `old` compactions, and deletes the files for earlier states.
    """
    data = io.BytesIO()
    np.savez(data, **arrays)
    sealed.write(folder, f"rows.{new}.npz", data.getbuffer())
    for name in folder.names():
        if _EPOCH_ROWS.fullmatch(name) and name not in {f"rows.{old}.npz", f"rows.{new}.npz"}:
            folder.unlink(name)
