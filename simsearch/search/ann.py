"""Approximate search: a small FAISS index finds candidates, which are then ranked by their exact distances.

The FAISS index holds the features after projection onto fewer dimensions. One vector in it is called an entry.
`derived/<name>/` in the index's folder stores the FAISS index, the projection, and the row number of each entry in the
feature files; `ann_files` reads these files. Rows that were added after the FAISS index was built are searched exactly.
Deleted rows are never returned.

Shape letters: nq queries, k neighbours, n entries, D dimension of the features.
"""

from __future__ import annotations

import contextlib
import functools
import secrets
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

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
"""Number of neighbours for which the recall is measured. A search for more has proportionally more candidates."""

NARROW = 0.25
"""If less than this fraction of the entries is permitted, for example by a filter, the search is exact."""

LINKS, CONSTRUCTION = 24, 80
"""Parameters of FAISS's HNSW index: M, the links per node, and efConstruction."""

MANY = 8
"""If there are at least this number of queries, several threads rank their candidates."""

FILLED = 32
"""FAISS's fast scan compares this number of codes at once, and pads each inverted list to a multiple of this number."""

LISTED = ("ivf", "pq")
"""Kinds that divide their entries into inverted lists. A search visits only the lists nearest to the query."""


@dataclass(frozen=True)
class AnnSettings:
    """The kind and the parameters of an approximate search. `meta.json` stores them under the names of the fields.

    kind: hnsw, ivf, pq, sq8, rabitq, or codes (see `binary_codes`).
    dimensions: the number of dimensions after projection; for codes, the number of bits.
    candidates: the number of rows ranked by their exact distances in a search for up to K neighbours.
    effort: FAISS's efSearch for hnsw, nprobe for ivf and pq; 0 for the other kinds, which compare all entries.
    """

    kind: str
    dimensions: int
    candidates: int
    effort: int

    def bytes_for(self, entries: int) -> int:
        """Estimates the memory for `entries` entries in bytes; for pq, returns an upper bound.

        The memory is that of the codes, the links of hnsw, the inverted lists and the row numbers.
        """
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
    """Returns the recall of each query: the fraction of its `K` nearest neighbours that were found.

    A result counts as one of the nearest if it is no farther than the true K-th neighbour.
    found: the results of each query.
    truth: (nq,) the distance of each query's true K-th neighbour.
    """
    return np.array(
        [
            np.count_nonzero(each.distances[:K] <= limit * (1 + 1e-9)) / K
            for each, limit in zip(found, truth, strict=True)
        ]
    )


def lists(entries: int) -> int:
    """Returns the number of inverted lists for an index of `entries` entries."""
    return int(min(max(4 * entries**0.5, 8), max(entries // 16, 1), 8192))


def new_faiss_index(setting: AnnSettings, entries: int) -> Any:
    """Returns an empty, untrained FAISS index with these settings, for about `entries` entries."""
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


def _parameters(setting: AnnSettings, wanted: int, bits: NDArray[np.uint8] | None = None) -> Any:
    """Returns FAISS's parameters of a search. wanted, bits: as for `AnnIndex._candidates`."""
    selector = None if bits is None else faiss.IDSelectorBitmap(bits)
    if setting.kind == "hnsw":
        return faiss.SearchParametersHNSW(sel=selector, efSearch=max(setting.effort, wanted))
    if setting.kind in LISTED:
        return faiss.SearchParametersIVF(sel=selector, nprobe=setting.effort)
    if setting.kind == "rabitq":
        return faiss.RaBitQSearchParameters(sel=selector, qb=8, centered=False)
    return faiss.SearchParameters(sel=selector)


_unfiltered = functools.lru_cache(64)(_parameters)
"""The same as `_parameters` for searches without `bits`, but cached: making parameters takes as long as using them."""


class AnnIndex:
    """Approximate search by a FAISS index over projected features. Safe for many threads.

    projection: maps features to vectors; only its first `setting.dimensions` axes are used.
    index: the FAISS index, with n entries.
    rows: (n,) the row number of each entry in the feature files; -1 if a compaction has removed the row.
    covered: the number of rows in the feature files when the FAISS index was built; later rows are searched exactly.
    compactions: the number of compactions of the feature files before `rows` was made. The next compaction gives the
    rows in the feature files new numbers, so that `rows` is no longer valid.
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
        self.data: NDArray[np.uint8] | None = None  # the content of index.faiss, which FAISS uses in place
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
        """Returns the k permitted rows nearest to each of (nq, D) queries, found approximately, with exact distances.

        The search is exact if `can_answer` returns False. It returns fewer than k rows only if fewer are permitted.
        flat: the exact search over the same feature files.
        permitted: the rows that may be returned, ascending; None for all.
        setting: replaces `candidates` and `effort` of the index's own setting, for tuning.
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
        """Returns True if `search` uses the FAISS index, False if it searches exactly.

        `search` searches exactly if the FAISS index has rows that `flat` lacks, or if too few entries are permitted:
        less than the fraction NARROW of all entries, or less than twice the number of candidates.
        """
        if self.covered > flat.rows:  # the FAISS index has rows that this snapshot lacks
            return False
        _, allowed = self._allowed(flat.rows, permitted)
        wanted = (setting or self.setting).candidates * -(-k // K)
        return allowed >= NARROW * len(self.rows) and 2 * wanted <= allowed

    def _fresh(self, flat: FlatIndex, permitted: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Returns the permitted rows that were added after the FAISS index was built."""
        if permitted is None:
            return np.arange(self.covered, flat.rows)
        return permitted[np.searchsorted(permitted, self.covered) :]

    def _allowed(self, rows: int, permitted: NDArray[np.int64] | None) -> tuple[NDArray[np.uint8] | None, int]:
        """Returns a bitmap of the permitted entries for FAISS (None if all are permitted), and their number.

        rows: the number of rows in the feature files.
        """
        if permitted is None:
            return self._all
        known, bits, count = self._bits
        if known is not permitted:
            mask = np.zeros(max(rows, self.covered) + 1, bool)  # removed rows, -1, use the last place
            mask[permitted] = True
            chosen = mask[self.rows]
            count = int(chosen.sum())
            bits = None if count == len(chosen) else np.packbits(chosen, bitorder="little")
            self._bits = permitted, bits, count
        return bits, count

    def _candidates(
        self, queries: NDArray[np.float32], wanted: int, bits: NDArray[np.uint8] | None, setting: AnnSettings
    ) -> NDArray[np.int64]:
        """Returns the entries that FAISS finds nearest to each query, (nq, wanted); -1 fills empty places.

        wanted: the number of entries to find for each query.
        bits: the bitmap of the permitted entries; None if all are permitted.
        """
        parameters = _unfiltered(setting, wanted) if bits is None else _parameters(setting, wanted, bits)
        projected = self.projection(queries)
        with OneThread() if len(queries) == 1 else contextlib.nullcontext():
            entries: NDArray[np.int64] = self.index.search(projected, wanted, params=parameters)[1]
        if entries.size and entries.max() >= len(self.rows):
            raise IndexDamagedError("the approximate search is damaged: it returned entries that do not exist")
        return entries

    # -- files

    def save(self, derived: Folder) -> tuple[str, dict[str, Any]]:
        """Writes the files to a new folder in `derived`.

        Returns the name of the folder, and the parameters that `ann_files.load` needs.
        """
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
            sealed.write_array(folder, f"{part}.npy", np.ascontiguousarray(array))
        sealed.write(folder, "index.faiss", faiss.serialize_index(self.index).data)
