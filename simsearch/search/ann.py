"""Approximate search: a small FAISS index over projected features finds candidates, which the exact features rank.

Its files are derived data in `derived/<name>/`, read by `ann_files`: the projection, FAISS's index over the projected
features, and the feature row of each entry. Newer rows are scanned exactly; deleted rows are never returned.
"""

from __future__ import annotations

import contextlib
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
"""Number of neighbours in the target recall; a search for more has more candidates, in proportion."""

NARROW = 0.25
"""If a filter permits a smaller fraction of the entries, the search is an exact scan."""

LINKS, CONSTRUCTION = 24, 80
"""HNSW's M (links per node) and efConstruction."""

MANY = 8
"""From this number of queries on, several threads rank their candidates."""

FILLED = 32
"""FAISS's fast scan compares this number of codes at once, and pads each list to a multiple of it."""

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
        """Estimates the bytes of `entries` entries: codes, links, lists and row numbers. For pq, an upper bound."""
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
    """Returns the recall of each query: the fraction of its first K neighbours no farther than the true K-th neighbour.

    truth: (nq,) the distance of each query's true K-th neighbour. Other rows at this distance count as found.
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
    covered: the number of feature rows when the index was made, larger than all of `rows`.
    compactions: the number of compactions after which `rows` is valid, since each compaction renumbers the rows.
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
        self.data: NDArray[np.uint8] | None = None  # content of a file that the FAISS index uses in place
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
        """Returns approximately the k nearest permitted rows to each of (nq, D) queries, with exact distances.

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
        if self.covered > flat.rows:  # this index is newer than the snapshot, which lacks some rows
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
        """Writes the files to a new folder in `derived`; returns its name and the parameters for `ann_files.load`."""
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
