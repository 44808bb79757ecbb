"""Approximate search by binary codes: rows with the nearest codes by Hamming distance are ranked by exact distances.

`derived/<name>/` in the index's folder has these files: `codes.safetensors` is the encoder, which turns features into
codes; `entries.npy` has the codes; `rows.npy` has the row number of each code in the feature files. Rows that are added
later are encoded when they are committed. Their codes are in files `added.<number of compactions>.<first row>.npy`.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common.lazy import LazyModule
from simsearch.errors import IndexDamagedError, SimsearchError, WeightsError
from simsearch.models.hashing.encoder import HashEncoder
from simsearch.search import ann_files
from simsearch.search.ann import AnnIndex, AnnSettings
from simsearch.storage import derived as sealed

if TYPE_CHECKING:
    from collections.abc import Iterator

    import faiss
    from numpy.typing import NDArray

    from simsearch.search.exact import FlatIndex
    from simsearch.storage.folder import Folder
else:
    faiss = LazyModule("faiss")

BLOCK = 2048
"""Number of rows encoded at once."""

_UNREADABLE = (*ann_files.UNREADABLE, WeightsError)
"""The errors that damaged files can cause while they are read."""


class BinaryCodeIndex(AnnIndex):
    """Approximate search by Hamming distance between binary codes.

    codes: the encoder, a function that takes features and returns their codes.
    entries: (n, bytes) uint8, the codes of the n rows in `rows`.
    rows, covered, compactions: as in `AnnIndex`.
    """

    def __init__(
        self,
        setting: AnnSettings,
        codes: HashEncoder,
        entries: NDArray[np.uint8],
        rows: NDArray[np.int64],
        covered: int,
        compactions: int = 0,
    ) -> None:
        self.setting, self.codes = setting, codes
        self.index = faiss.IndexBinaryFlat(codes.bits)
        self.index.add(np.ascontiguousarray(entries))
        self._cover(rows, covered, compactions)

    def _candidates(
        self, queries: NDArray[np.float32], wanted: int, bits: NDArray[np.uint8] | None, setting: AnnSettings
    ) -> NDArray[np.int64]:
        parameters = None if bits is None else faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))
        entries: NDArray[np.int64] = self.index.search(self.codes(queries), wanted, params=parameters)[1]
        return entries

    def _write(self, folder: Folder) -> None:
        sealed.write(folder, "codes.safetensors", self.codes.to_bytes())
        sealed.write_array(folder, "entries.npy", faiss_bytes(self.index))
        sealed.write_array(folder, "rows.npy", self.rows)


def load(folder: Folder, parameters: dict[str, Any], compactions: int) -> AnnIndex:
    """Loads the files of any kind of approximate search: binary codes, or one of the kinds in `ann`.

    parameters: those that `AnnIndex.save` returned.
    compactions: the number of compactions of the feature files so far.
    Raises IndexDamagedError for damaged files, and SimsearchError for files that cannot be read for other reasons.
    """
    if parameters.get("kind") != "codes":
        return ann_files.load(folder, parameters, compactions)
    try:
        setting = ann_files.read_settings(parameters)
        codes = _read_encoder(folder)
        entries, rows, covered = _base(folder, parameters, compactions)
        parts, numbers = [entries], [rows]
        for added, first in _added(folder, compactions, covered):
            parts.append(added)
            numbers.append(np.arange(first, first + len(added)))
            covered = first + len(added)
        entries, rows = np.concatenate(parts), np.concatenate(numbers)
        if codes.bits != setting.dimensions or entries.shape != (len(rows), codes.bits // 8):
            raise ValueError("its files do not belong together")
        if entries.dtype != np.uint8:
            raise ValueError("its files do not belong together")
        ann_files.check_rows(rows, covered)
        return BinaryCodeIndex(setting, codes, entries, rows, covered, compactions)
    except _UNREADABLE as error:
        raise IndexDamagedError(f"the approximate search in {folder.path} cannot be used: {error}") from error


def _read_encoder(folder: Folder) -> HashEncoder:
    return HashEncoder.from_bytes(sealed.read(folder, "codes.safetensors").tobytes(), folder.path / "codes.safetensors")


def _base(
    folder: Folder, parameters: dict[str, Any], compactions: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64], int]:
    """Reads the codes that `AnnIndex.save` wrote, or those of the last compaction if there was one after `save`.

    Returns the codes, their row numbers, and the number of rows before those in the `added` files. The `added` files
    have the codes of the rows that were added later; they are not read.
    parameters: those that `AnnIndex.save` returned.
    """
    if compactions == parameters.get("epoch", 0):
        entries, rows = (sealed.read_array(folder, f"{part}.npy") for part in ("entries", "rows"))
        return entries, rows, int(parameters["covered"])
    arrays = sealed.read_arrays(folder, f"rows.{compactions}.npz")
    return arrays["entries"], arrays["rows"], int(arrays["covered"])


def _added(folder: Folder, compactions: int, covered: int) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Yields the codes in each `added` file, with the number of the first row in the file.

    covered: the number of rows before those in the `added` files. Rows are numbered from 0, so this is also the
    number of the first row in the first `added` file.
    """
    while folder.exists(name := f"added.{compactions}.{covered}.npy"):
        part: NDArray[np.uint8] = sealed.read_array(folder, name)
        if not len(part):
            raise ValueError(f"{name} is empty")
        yield part, covered
        covered += len(part)


def extend(folder: Folder, parameters: dict[str, Any], flat: FlatIndex) -> int:
    """Encodes the rows that were added since the last call; returns the number of rows that have codes now.

    The caller must hold the writer lock. Raises IndexDamagedError if the files of the approximate search are damaged.
    """
    try:
        covered, compactions = int(parameters["covered"]), flat.shards.compactions
        if compactions != parameters.get("epoch", 0):
            covered = int(sealed.read_arrays(folder, f"rows.{compactions}.npz")["covered"])
        start = covered
        parts: list[NDArray[np.uint8]] = []
        for part, first in _added(folder, compactions, covered):
            covered = first + len(part)
            small = len(part) < BLOCK  # a small last file is rewritten, to avoid many small files
            start, parts = (first, [part]) if small else (covered, [])
        if covered >= flat.rows:
            return covered
        codes = _read_encoder(folder)
        parts += [
            codes(flat.read(np.arange(first, min(first + BLOCK, flat.rows))))
            for first in range(covered, flat.rows, BLOCK)
        ]
        sealed.write_array(folder, f"added.{compactions}.{start}.npy", np.concatenate(parts))
    except _UNREADABLE as error:
        raise IndexDamagedError(f"the approximate search in {folder.path} cannot be used: {error}") from error
    return flat.rows


def renumber(index: Folder, parameters: dict[str, Any], live: NDArray[np.int64], old: int, new: int) -> None:
    """Renumbers the rows in the files of any kind of approximate search for a compaction; see `ann_files.renumber`.

    Does nothing if the index has no such files, or if they cannot be read.
    index: the index's folder.
    """
    with contextlib.suppress(*_UNREADABLE, SimsearchError):
        folder = sealed.structure_folder(index, parameters.get("folder") or "")
        folder.unlink(f"rows.{new}.npz")  # left over from a killed compaction
        if parameters.get("kind") != "codes":
            ann_files.renumber(folder, parameters, live, old, new)
            return
        made = load(folder, parameters, old)
        rows = ann_files.moved(made.rows, live)
        entries = faiss_bytes(made.index)[rows >= 0]
        ann_files.record(
            folder, old, new, entries=entries, rows=rows[rows >= 0], covered=np.searchsorted(live, made.covered)
        )
        for name in folder.names():
            if name.startswith("added.") and name.split(".")[1] != str(old):
                folder.unlink(name)


def faiss_bytes(index: Any) -> NDArray[np.uint8]:
    """Returns a copy of the codes that a binary FAISS index has: (n, bytes) uint8."""
    codes: NDArray[np.uint8] = faiss.vector_to_array(index.xb).reshape(index.ntotal, index.code_size)
    return codes
