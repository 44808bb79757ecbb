"""Approximate search: a small structure over projected features names candidates, the exact features rank them.

The structure is derived data in `derived/<name>/`: the projection, FAISS's index over the projected features, and the
row of each of its entries. Rows written after it was made are scanned exactly; rows that are gone are never returned.
"""

from __future__ import annotations

import os
import secrets
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from simsearch.common.atomic_files import sync_folder
from simsearch.common.pca import Projection
from simsearch.errors import IndexDamagedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.search.exact import FlatIndex, Neighbours

K = 10
"""The recall that is promised is that of so many neighbours; for more, candidates grow in proportion."""

NARROW = 0.25
"""A filter that permits a smaller share of the entries is answered by an exact scan."""

LINKS, CONSTRUCTION = 24, 80
"""HNSW's links of a node, and how widely it looks for them."""

FILLED = 32
"""FAISS's fast scan compares so many codes at once, and fills each list up to a multiple."""

LISTED = ("ivf", "pq")
"""Kinds that visit the lists nearest to a query."""


@dataclass(frozen=True)
class AnnSettings:
    """kind: hnsw, ivf, pq, sq8, rabitq or codes. dimensions: of the projection, or bits. candidates: ranked exactly.

    effort: HNSW's list of candidates (efSearch) or visited lists (nprobe) of ivf and pq; 0 for kinds that scan.
    """

    kind: str
    dimensions: int
    candidates: int
    effort: int

    def bytes_for(self, entries: int) -> int:
        """Resident memory of so many entries, about: codes, links, lists, and each one's row; of pq, at most."""
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
    """Of each query the share of its K that are as near as the true K-th, `truth` away; ties count either way."""
    return np.array(
        [
            np.count_nonzero(each.distances[:K] <= limit * (1 + 1e-9)) / K
            for each, limit in zip(found, truth, strict=True)
        ]
    )


def lists(entries: int) -> int:
    """IVF's number of lists."""
    return int(min(max(4 * entries**0.5, 8), max(entries // 16, 1), 8192))


def new_faiss_index(setting: AnnSettings, entries: int) -> Any:
    """An empty FAISS index of that kind for about so many entries."""
    import faiss

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
    """Searches by `index` over the features that `projection` makes of `rows`. Safe for many threads.

    rows: (n,) the feature row of each entry, all below `covered`, how many rows there were when it was made; -1 for
    what a compaction has removed. epoch: of the feature files that the rows lie in.
    """

    def __init__(
        self,
        setting: AnnSettings,
        projection: Projection,
        index: Any,
        rows: NDArray[np.int64],
        covered: int,
        epoch: int = 0,
    ) -> None:
        self.setting, self.index, self.projection = setting, index, projection.first(setting.dimensions)
        self._cover(rows, covered, epoch)

    def _cover(self, rows: NDArray[np.int64], covered: int, epoch: int) -> None:
        self.rows, self.covered, self.epoch = rows, covered, epoch
        there = rows >= 0
        bits = None if there.all() else np.packbits(there, bitorder="little")
        self._all: tuple[NDArray[np.uint8] | None, int] = bits, int(there.sum())
        self._bits: tuple[NDArray[np.int64] | None, NDArray[np.uint8] | None, int] = (None, *self._all)

    def search(
        self,
        flat: FlatIndex,
        queries: NDArray[np.float32],
        k: int,
        permitted: NDArray[np.int64] | None,
        setting: AnnSettings | None = None,
    ) -> list[Neighbours]:
        """About the k nearest permitted rows to each of (nq, D) queries, measured exactly, k where there are as many.

        All of them where the structure does not serve. setting: other candidates and effort than the structure's own,
        for tuning.
        """
        setting = setting or self.setting
        if not self.serves(flat, k, permitted, setting):
            return flat.search(queries, k, permitted)
        bits, _ = self._allowed(flat.rows, permitted)
        wanted = setting.candidates * -(-k // K)
        entries = self._candidates(queries, wanted, bits, setting)
        fresh = self._fresh(flat, permitted)
        newer = flat.search(queries, k, fresh) if len(fresh) else None
        answers = []
        for number, query in enumerate(queries):
            rows = self.rows[entries[number][entries[number] >= 0]]
            if newer is not None:
                rows = np.concatenate([rows, newer[number].rows])
            enough = len(rows) >= k and np.isfinite(query).all()
            answers.append(flat.rank(query, rows, k) if enough else flat.search(query[None], k, permitted)[0])
        return answers

    def serves(
        self, flat: FlatIndex, k: int, permitted: NDArray[np.int64] | None, setting: AnnSettings | None = None
    ) -> bool:
        """Whether `search` is approximate: not if few rows are permitted, or most of them would be candidates."""
        if self.covered > flat.rows:  # made since this reader's snapshot was taken, of rows that it does not know
            return False
        _, allowed = self._allowed(flat.rows, permitted)
        wanted = (setting or self.setting).candidates * -(-k // K)
        return allowed >= NARROW * len(self.rows) and 2 * wanted <= allowed

    def _fresh(self, flat: FlatIndex, permitted: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """The permitted rows that came after the structure."""
        if permitted is None:
            return np.arange(self.covered, flat.rows)
        return permitted[np.searchsorted(permitted, self.covered) :]

    def _allowed(self, rows: int, permitted: NDArray[np.int64] | None) -> tuple[NDArray[np.uint8] | None, int]:
        """Which entries may be found, as FAISS's bitmap (None for all), and how many."""
        if permitted is None:
            return self._all
        known, bits, count = self._bits
        if known is not permitted:
            mask = np.zeros(max(rows, self.covered) + 1, bool)  # the last one stands for rows that are gone, -1
            mask[permitted] = True
            chosen = mask[self.rows]
            count = int(chosen.sum())
            bits = None if count == len(chosen) else np.packbits(chosen, bitorder="little")
            self._bits = permitted, bits, count
        return bits, count

    def _candidates(
        self, queries: NDArray[np.float32], wanted: int, bits: NDArray[np.uint8] | None, setting: AnnSettings
    ) -> NDArray[np.int64]:
        """FAISS's nearest entries, (nq, wanted); -1 where there are none."""
        import faiss

        selector = None if bits is None else faiss.IDSelectorBitmap(bits)
        if setting.kind == "hnsw":
            parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=max(setting.effort, wanted))
        elif setting.kind in LISTED:
            parameters = faiss.SearchParametersIVF(sel=selector, nprobe=setting.effort)
        elif setting.kind == "rabitq":
            parameters = faiss.RaBitQSearchParameters(sel=selector, qb=8, centered=False)
        else:
            parameters = faiss.SearchParameters(sel=selector)
        entries: NDArray[np.int64] = self.index.search(self.projection(queries), wanted, params=parameters)[1]
        return entries

    # -- files

    def save(self, folder: Path) -> tuple[str, dict[str, Any]]:
        """Writes the files under a new name in `folder`, and returns it and what `load` must be given."""
        name = secrets.token_hex(8)
        partial = folder / f".{name}"
        partial.mkdir(parents=True)
        try:
            self._write(partial)
            for path in partial.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            sync_folder(partial)
            os.replace(partial, folder / name)
            sync_folder(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return name, {**asdict(self.setting), "covered": self.covered, "epoch": self.epoch}

    def _write(self, folder: Path) -> None:
        import faiss

        for part, array in (("rows", self.rows), ("mean", self.projection.mean), ("axes", self.projection.axes)):
            np.save(folder / f"{part}.npy", array)
        faiss.write_index(self.index, str(folder / "index.faiss"))

    @classmethod
    def load(cls, folder: Path, parameters: dict[str, Any], epoch: int = 0) -> AnnIndex:
        """Reads what `save` wrote, with the rows of the given epoch. Raises IndexDamagedError."""
        import faiss

        try:
            mean, axes = (np.load(folder / f"{part}.npy") for part in ("mean", "axes"))
            rows, covered = _rows(folder, parameters, epoch)
            index = faiss.read_index(str(folder / "index.faiss"))
            setting = AnnSettings(**{name: parameters[name] for name in AnnSettings.__dataclass_fields__})
            if (index.ntotal, index.d) != (len(rows), setting.dimensions) or axes.shape != (len(mean), index.d):
                raise ValueError("its parts do not belong together")
            return cls(setting, Projection(mean, axes), index, rows, covered, epoch)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, BadZipFile) as error:
            raise IndexDamagedError(f"the search structure {folder} cannot be used: {error}") from error


def _rows(folder: Path, parameters: dict[str, Any], epoch: int) -> tuple[NDArray[np.int64], int]:
    """The row of each entry in an epoch, and how many rows the structure covers."""
    if epoch == parameters.get("epoch", 0):
        return np.load(folder / "rows.npy"), int(parameters["covered"])
    with np.load(folder / f"rows.{epoch}.npz") as file:
        return file["rows"], int(file["covered"])


def renumber(folder: Path, parameters: dict[str, Any], live: NDArray[np.int64], old: int, new: int) -> None:
    """Prepares a structure for the feature files of epoch `new`, which hold the (n,) rows `live` of `old`, ascending.

    What was recorded for readers of `old` stays, what is older goes. Raises OSError, ValueError or KeyError for a
    structure that cannot be read.
    """
    rows, covered = _rows(folder, parameters, old)
    record(folder, old, new, rows=moved(rows, live), covered=np.searchsorted(live, covered))


def moved(rows: NDArray[np.int64], live: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where rows are once only the rows `live`, ascending, are left: (n,), -1 for those that are not."""
    places = np.searchsorted(live, rows)
    there = np.append(live, -2)[places] == rows
    return np.where(there, places, -1)


def record(folder: Path, old: int, new: int, **arrays: Any) -> None:
    """Writes what a structure is in the epoch `new` beside what it was in `old`."""
    partial = folder / ".rows.partial"
    with partial.open("wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, folder / f"rows.{new}.npz")
    sync_folder(folder)
    for path in folder.glob("rows.*.npz"):
        if path.name not in {f"rows.{old}.npz", f"rows.{new}.npz"}:
            path.unlink()
