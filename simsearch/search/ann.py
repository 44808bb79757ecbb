"""Approximate search: a small FAISS index over projected features finds candidates, which the exact features rank.

It is derived data in `derived/<name>/`: the projection, FAISS's index over the projected features, and the feature row
of each entry. Newer rows are scanned exactly; deleted rows are never returned.
"""

from __future__ import annotations

import contextlib
import io
import re
import secrets
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from simsearch.common.lazy import LazyModule
from simsearch.common.pca import Projection
from simsearch.errors import IndexDamagedError
from simsearch.search.faiss_files import OneThread, pool
from simsearch.storage import derived as sealed

if TYPE_CHECKING:
    import faiss
    from numpy.typing import NDArray

    from simsearch.search.exact import FlatIndex
    from simsearch.search.ranking import Neighbours
    from simsearch.storage.folder import Folder
else:
    faiss = LazyModule("faiss")

K = 10
"""The target recall is that of the 10 nearest neighbours; for more, the number of candidates grows in proportion."""

NARROW = 0.25
"""If a filter permits a smaller fraction of the entries, the search is an exact scan."""

LINKS, CONSTRUCTION = 24, 80
"""HNSW's M (links per node) and efConstruction."""

MANY = 8
"""From this number of queries on, several threads rank their candidates."""

FILLED = 32
"""FAISS's fast scan compares this number of codes at once, and pads each list to a multiple of it."""

_EPOCH_ROWS = re.compile(r"rows\.\d+\.npz")

LISTED = ("ivf", "pq")
"""The kinds with inverted lists, of which a search visits those nearest to the query."""


@dataclass(frozen=True)
class AnnSettings:
    """The kind and parameters of an approximate search. The field names are also keys in `meta.json`.

    kind: hnsw, ivf, pq, sq8, rabitq or codes.
    dimensions: of the projection; for codes, the number of bits.
    candidates: the number ranked exactly.
    effort: efSearch for hnsw, nprobe for ivf and pq, 0 for kinds that scan.
    """

    kind: str
    dimensions: int
    candidates: int
    effort: int

    def bytes_for(self, entries: int) -> int:
        """Estimates the memory of `entries` entries: codes, links, lists and row numbers. For pq, an upper bound."""
        each = {
            "hnsw": self.dimensions + 8 * LINKS + 24,
            "ivf": self.dimensions + 8,
            "pq": self.dimensions // 2 + 8,
            "sq8": self.dimensions,
            "rabitq": self.dimensions // 8 + 8,
            "codes": self.dimensions // 8,
        }
        each_list = {"ivf": 4 * self.dimensions, "pq": 4 * self.dimensions + FILLED * self.dimensions // 2}
        return entries * (each[self.kind] + 8) + lists(entries) * each_list.get(self.kind, 0)


def recalls(found: list[Neighbours], truth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns each query's recall: the fraction of its K neighbours no farther than the true K-th one.

    truth: (nq,) distances of the true K-th neighbours. Rows that tie with it count.
    """
    return np.array(
        [
            np.count_nonzero(each.distances[:K] <= limit * (1 + 1e-9)) / K
            for each, limit in zip(found, truth, strict=True)
        ]
    )


def lists(entries: int) -> int:
    """Returns the number of IVF lists for `entries` entries."""
    return int(min(max(4 * entries**0.5, 8), max(entries // 16, 1), 8192))


def new_faiss_index(setting: AnnSettings, entries: int) -> Any:
    """Makes an empty FAISS index for about `entries` entries."""
    d, eight = setting.dimensions, faiss.ScalarQuantizer.QT_8bit
    if setting.kind == "hnsw":
        index = faiss.IndexHNSWSQ(d, eight, LINKS)
        index.hnsw.efConstruction = CONSTRUCTION
    elif setting.kind == "ivf":
        quantizer = faiss.IndexFlatL2(d)
        index = faiss.IndexIVFScalarQuantizer(quantizer, d, lists(entries), eight, faiss.METRIC_L2, False)
        index.cp.min_points_per_centroid = 1
    elif setting.kind == "pq":  # four bits a dimension, compared by FAISS's fast scan
        quantizer = faiss.IndexFlatL2(d)
        index = faiss.IndexIVFPQFastScan(quantizer, d, lists(entries), d, 4, faiss.METRIC_L2, FILLED, True)
        index.cp.min_points_per_centroid = 1
    elif setting.kind == "sq8":
        index = faiss.IndexScalarQuantizer(d, eight)
    else:
        index = faiss.IndexRaBitQ(d)
    return index


class AnnIndex:
    """Approximate search by a FAISS index over projected features. Safe for many threads.

    projection: from features to the vectors in `index`.
    index: FAISS's index, of n entries.
    rows: (n,) the feature row of each entry; -1 if compaction has removed it.
    covered: the number of feature rows when it was made, larger than all of `rows`.
    compactions: the number of compactions so far, since each gives rows other numbers.
    """

    def __init__(
        self,
        setting: AnnSettings,
        projection: Projection,
        index: Any,
        rows: NDArray[np.int64],
        covered: int,
        compactions: int = 0,
    ) -> None:
        self.setting, self.index, self.projection = setting, index, projection.first(setting.dimensions)
        self._data: NDArray[np.uint8] | None = None
        self._cover(rows, covered, compactions)

    def _cover(self, rows: NDArray[np.int64], covered: int, compactions: int) -> None:
        self.rows, self.covered, self.compactions = rows, covered, compactions
        live = rows >= 0
        bits = None if live.all() else np.packbits(live, bitorder="little")
        self._all: tuple[NDArray[np.uint8] | None, int] = bits, int(live.sum())
        self._bits: tuple[NDArray[np.int64] | None, NDArray[np.uint8] | None, int] = (None, *self._all)

    def search(
        self,
        flat: FlatIndex,
        queries: NDArray[np.float32],
        k: int,
        permitted: NDArray[np.int64] | None,
        setting: AnnSettings | None = None,
    ) -> list[Neighbours]:
        """Returns about the k nearest permitted rows to each of (nq, D) queries, with exact distances.

        Searches exactly if `can_answer` is False. There are fewer than k only if fewer rows are permitted.
        setting: candidates and effort in place of the index's own, for tuning.
        """
        setting = setting or self.setting
        if not self.can_answer(flat, k, permitted, setting):
            return flat.search(queries, k, permitted)
        bits, _ = self._allowed(flat.rows, permitted)
        wanted = setting.candidates * -(-k // K)
        entries = self._candidates(queries, wanted, bits, setting)
        fresh = self._fresh(flat, permitted)
        newer = flat.search(queries, k, fresh) if len(fresh) else None

        def ranked(number: int) -> Neighbours | None:
            rows = self.rows[entries[number][entries[number] >= 0]]
            if newer is not None:
                rows = np.concatenate([rows, newer[number].rows])
            enough = len(rows) >= k and np.isfinite(queries[number]).all()
            return flat.rank(queries[number], rows, k) if enough else None

        numbers = range(len(queries))
        found = list((pool().map if len(queries) >= MANY else map)(ranked, numbers))
        return [
            flat.search(queries[number][None], k, permitted)[0] if near is None else near
            for number, near in enumerate(found)
        ]

    def can_answer(
        self, flat: FlatIndex, k: int, permitted: NDArray[np.int64] | None, setting: AnnSettings | None = None
    ) -> bool:
        """Returns True if `search` is approximate: many rows are permitted, and few of them become candidates."""
        if self.covered > flat.rows:  # newer than the reader's snapshot, which lacks some of its rows
            return False
        _, allowed = self._allowed(flat.rows, permitted)
        wanted = (setting or self.setting).candidates * -(-k // K)
        return allowed >= NARROW * len(self.rows) and 2 * wanted <= allowed

    def _fresh(self, flat: FlatIndex, permitted: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Returns the permitted rows that were added after the index was made."""
        if permitted is None:
            return np.arange(self.covered, flat.rows)
        return permitted[np.searchsorted(permitted, self.covered) :]

    def _allowed(self, rows: int, permitted: NDArray[np.int64] | None) -> tuple[NDArray[np.uint8] | None, int]:
        """Returns the entries that may be found, as a bitmap for FAISS (None for all), and their number."""
        if permitted is None:
            return self._all
        known, bits, count = self._bits
        if known is not permitted:
            mask = np.zeros(max(rows, self.covered) + 1, bool)  # the last one is for removed rows, -1
            mask[permitted] = True
            chosen = mask[self.rows]
            count = int(chosen.sum())
            bits = None if count == len(chosen) else np.packbits(chosen, bitorder="little")
            self._bits = permitted, bits, count
        return bits, count

    def _candidates(
        self, queries: NDArray[np.float32], wanted: int, bits: NDArray[np.uint8] | None, setting: AnnSettings
    ) -> NDArray[np.int64]:
        """Returns FAISS's nearest entries, (nq, wanted), filled up with -1."""
        selector = None if bits is None else faiss.IDSelectorBitmap(bits)
        if setting.kind == "hnsw":
            parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=max(setting.effort, wanted))
        elif setting.kind in LISTED:
            parameters = faiss.SearchParametersIVF(sel=selector, nprobe=setting.effort)
        elif setting.kind == "rabitq":
            parameters = faiss.RaBitQSearchParameters(sel=selector, qb=8, centered=False)
        else:
            parameters = faiss.SearchParameters(sel=selector)
        projected = self.projection(queries)
        with OneThread() if len(queries) == 1 else contextlib.nullcontext():
            entries: NDArray[np.int64] = self.index.search(projected, wanted, params=parameters)[1]
        if entries.size and entries.max() >= len(self.rows):
            raise IndexDamagedError("the search structure names entries that it does not have")
        return entries

    # -- files

    def save(self, derived: Folder) -> tuple[str, dict[str, Any]]:
        """Writes the files to a new folder in `derived`; returns its name and the parameters for `load`."""
        name = secrets.token_hex(8)
        try:
            self._write(derived.child(name, create=True))
            derived.sync()
        except BaseException:
            with contextlib.suppress(OSError):
                derived.remove(name)
            raise
        return name, {**asdict(self.setting), "covered": self.covered, "epoch": self.compactions}

    def _write(self, folder: Folder) -> None:
        for part, array in (("rows", self.rows), ("mean", self.projection.mean), ("axes", self.projection.axes)):
            sealed.write_array(folder, f"{part}.npy", array)
        sealed.write(folder, "index.faiss", faiss.serialize_index(self.index).data)

    @classmethod
    def load(cls, folder: Folder, parameters: dict[str, Any], compactions: int = 0) -> AnnIndex:
        """Reads the files of `save`, with the rows after `compactions`. Raises IndexDamagedError, SimsearchError."""
        try:
            setting = read_settings(parameters)
            mean, axes = (sealed.read_array(folder, f"{part}.npy") for part in ("mean", "axes"))
            if {str(mean.dtype), str(axes.dtype)} != {"float32"} or axes.shape != (len(mean), setting.dimensions):
                raise ValueError("its projection does not fit")
            if not (np.isfinite(mean).all() and np.isfinite(axes).all()):
                raise ValueError("its projection is not finite")
            rows, covered = _rows(folder, parameters, compactions)
            check_rows(rows, covered)
            data = sealed.read(folder, "index.faiss")
            index = faiss.read_index(faiss.ZeroCopyIOReader(faiss.swig_ptr(data), data.size))
            check_faiss_index(index, setting, len(rows))
            made = cls(setting, Projection(mean, axes), index, rows, covered, compactions)
            made._data = data  # which the FAISS index uses in place
            return made
        except UNREADABLE as error:
            raise IndexDamagedError(f"the search structure {folder.path} cannot be used: {error}") from error


UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, EOFError, BadZipFile, MemoryError)
"""Errors from files that do not contain what they should."""


def read_settings(parameters: dict[str, Any]) -> AnnSettings:
    """Returns the settings in the parameters of `meta.json`. Raises KeyError, ValueError."""
    setting = AnnSettings(**{name: parameters[name] for name in AnnSettings.__dataclass_fields__})
    numbers = setting.dimensions, setting.candidates, setting.effort, parameters["covered"], parameters.get("epoch", 0)
    if not isinstance(setting.kind, str) or not all(type(n) is int and 0 <= n < 1 << 40 for n in numbers):
        raise ValueError("its parameters in meta.json are out of range")
    if not (0 < setting.dimensions <= 1 << 16 and 0 < setting.candidates < 1 << 24 and setting.effort < 1 << 24):
        raise ValueError("its parameters in meta.json are out of range")
    return setting


def check_rows(rows: NDArray[Any], covered: int) -> None:
    """Raises ValueError if entries have the same row, or a row that is not below `covered`."""
    if rows.dtype != np.int64 or rows.ndim != 1:
        raise ValueError("its rows are not a list of integers")
    live = rows[rows >= 0]
    if len(live) and live.max() >= covered:
        raise ValueError(f"it has a row {live.max()}, but only {covered} are covered")
    if len(np.unique(live)) < len(live) or (len(rows) and rows.min() < -1):
        raise ValueError("it has the same row twice")


def check_faiss_index(index: Any, setting: AnnSettings, entries: int) -> None:
    """Raises ValueError if a FAISS index is not as `new_faiss_index` makes it, or refers to entries it does not have.

    FAISS follows such references without checking them.
    """
    expected = {
        "hnsw": "IndexHNSWSQ",
        "ivf": "IndexIVFScalarQuantizer",
        "pq": "IndexIVFPQFastScan",
        "sq8": "IndexScalarQuantizer",
        "rabitq": "IndexRaBitQ",
    }
    if type(index).__name__ != expected.get(setting.kind):
        raise ValueError(f"it is {type(index).__name__}, not of the kind {setting.kind}")
    if (index.ntotal, index.d, index.metric_type) != (entries, setting.dimensions, faiss.METRIC_L2):
        raise ValueError("its files do not belong together")
    if setting.kind in LISTED:
        quantizer = faiss.downcast_index(index.quantizer)
        if type(quantizer).__name__ != "IndexFlatL2" or (quantizer.ntotal, quantizer.d) != (index.nlist, index.d):
            raise ValueError("its lists do not fit")
        sizes = sum(index.invlists.list_size(number) for number in range(index.nlist))
        if index.invlists.nlist != index.nlist or sizes != entries:
            raise ValueError("its lists do not fit")
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
            raise ValueError("its graph does not fit")


def _rows(folder: Folder, parameters: dict[str, Any], compactions: int) -> tuple[NDArray[np.int64], int]:
    """Reads the row of each entry in an compactions, and the number of rows covered."""
    if compactions == parameters.get("epoch", 0):
        return sealed.read_array(folder, "rows.npy"), int(parameters["covered"])
    arrays = sealed.read_arrays(folder, f"rows.{compactions}.npz")
    return arrays["rows"], int(arrays["covered"])


def renumber(folder: Folder, parameters: dict[str, Any], live: NDArray[np.int64], old: int, new: int) -> None:
    """Prepares an index for a compaction: compactions `new` keeps the (n,) rows `live` of compactions `old`, ascending.

    Keeps the files for readers of `old`, deletes older ones. Raises an error of UNREADABLE or IndexDamagedError if the
    index cannot be read.
    """
    rows, covered = _rows(folder, parameters, old)
    record(folder, old, new, rows=moved(rows, live), covered=np.searchsorted(live, covered))


def moved(rows: NDArray[np.int64], live: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the new (n,) numbers of rows after all but the rows `live`, ascending, are removed; -1 if removed."""
    places = np.searchsorted(live, rows)
    kept = np.append(live, -2)[places] == rows
    return np.where(kept, places, -1)


def record(folder: Folder, old: int, new: int, **arrays: Any) -> None:
    """Writes an index's arrays for compactions `new`, keeps those of `old`, and deletes older ones."""
    data = io.BytesIO()
    np.savez(data, **arrays)
    sealed.write(folder, f"rows.{new}.npz", data.getbuffer())
    for name in folder.names():
        if _EPOCH_ROWS.fullmatch(name) and name not in {f"rows.{old}.npz", f"rows.{new}.npz"}:
            folder.unlink(name)
