"""Approximate search by binary codes: the nearest by Hamming distance are candidates, the exact features rank them.

A structure in `derived/<name>/` like any other: `encoder.safetensors` encodes, `entries.npy` holds the codes of the
rows in `random_reader.npy`. Items that come later are encoded when they are committed, into one further file each time.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from simsearch.common.atomic_files import sync_folder
from simsearch.errors import IndexDamagedError, WeightsError
from simsearch.models.hashing.encoder import HashEncoder
from simsearch.search import ann
from simsearch.search.ann import AnnIndex, AnnSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from simsearch.search.exact import FlatIndex

BLOCK = 2048
"""Rows encoded at once."""

_UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, WeightsError)
"""What files raise that are not as they were written."""


class BinaryCodeIndex(AnnIndex):
    """Searches (n, bytes) codes, those of `rows`, by Hamming distance. `covered` rows of the index are encoded."""

    def __init__(
        self,
        setting: AnnSettings,
        codes: HashEncoder,
        entries: NDArray[np.uint8],
        rows: NDArray[np.int64],
        covered: int,
        epoch: int = 0,
    ) -> None:
        import faiss

        self.setting, self.codes = setting, codes
        self.index = faiss.IndexBinaryFlat(codes.bits)
        self.index.add(np.ascontiguousarray(entries))
        self._cover(rows, covered, epoch)

    def _candidates(
        self, queries: NDArray[np.float32], wanted: int, bits: NDArray[np.uint8] | None, setting: AnnSettings
    ) -> NDArray[np.int64]:
        import faiss

        parameters = None if bits is None else faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))
        entries: NDArray[np.int64] = self.index.search(self.codes(queries), wanted, params=parameters)[1]
        return entries

    def _write(self, folder: Path) -> None:
        self.codes.save(folder / "codes.safetensors")
        np.save(folder / "entries.npy", faiss_bytes(self.index))
        np.save(folder / "rows.npy", self.rows)


def load(folder: Path, parameters: dict[str, Any], epoch: int) -> AnnIndex:
    """The structure that was saved with these parameters, of any kind. Raises IndexDamagedError."""
    if parameters.get("kind") != "codes":
        return AnnIndex.load(folder, parameters, epoch)
    try:
        setting = AnnSettings(**{name: parameters[name] for name in AnnSettings.__dataclass_fields__})
        codes = HashEncoder.load(folder / "codes.safetensors")
        entries, rows, covered = _base(folder, parameters, epoch)
        parts, numbers = [entries], [rows]
        for added, first in _added(folder, epoch, covered):
            parts.append(added)
            numbers.append(np.arange(first, first + len(added)))
            covered = first + len(added)
        entries, rows = np.concatenate(parts), np.concatenate(numbers)
        if (codes.bits, len(entries)) != (setting.dimensions, len(rows)) or entries.shape[1] != codes.bits // 8:
            raise ValueError("its parts do not belong together")
        return BinaryCodeIndex(setting, codes, entries, rows, covered, epoch)
    except _UNREADABLE as error:
        raise IndexDamagedError(f"the search structure {folder} cannot be used: {error}") from error


def _base(folder: Path, parameters: dict[str, Any], epoch: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], int]:
    """The codes, their rows, and how many rows were encoded when the structure was made, or last compacted."""
    if epoch == parameters.get("epoch", 0):
        return np.load(folder / "entries.npy"), np.load(folder / "rows.npy"), int(parameters["covered"])
    with np.load(folder / f"rows.{epoch}.npz") as file:
        return file["entries"], file["rows"], int(file["covered"])


def _added(folder: Path, epoch: int, covered: int) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """The codes of later rows, each part with its first row."""
    while (path := folder / f"added.{epoch}.{covered}.npy").exists():
        part: NDArray[np.uint8] = np.load(path)
        yield part, covered
        covered += len(part)


def extend(folder: Path, parameters: dict[str, Any], flat: FlatIndex) -> int:
    """Encodes the rows that came since, and returns how many rows are encoded now. For the holder of the writer lock.

    Raises IndexDamagedError.
    """
    try:
        covered, epoch = int(parameters["covered"]), flat.shards.epoch
        if epoch != parameters.get("epoch", 0):
            with np.load(folder / f"rows.{epoch}.npz") as file:
                covered = int(file["covered"])
        start = covered
        parts: list[NDArray[np.uint8]] = []
        for part, first in _added(folder, epoch, covered):
            covered = first + len(part)
            small = len(part) < BLOCK  # the last one grows, so that many small commits do not leave many files
            start, parts = (first, [part]) if small else (covered, [])
        if covered >= flat.rows:
            return covered
        codes = HashEncoder.load(folder / "codes.safetensors")
        parts += [
            codes(flat.read(np.arange(first, min(first + BLOCK, flat.rows))))
            for first in range(covered, flat.rows, BLOCK)
        ]
        write(folder / f"added.{epoch}.{start}.npy", np.concatenate(parts))
        sync_folder(folder)
    except _UNREADABLE as error:
        raise IndexDamagedError(f"the search structure {folder} cannot be used: {error}") from error
    return flat.rows


def renumber(derived: Path, parameters: dict[str, Any], live: NDArray[np.int64], old: int, new: int) -> None:
    """`ann.renumber` for a structure of any kind, if there is one; one that cannot be read is left alone."""
    with contextlib.suppress(*_UNREADABLE, AttributeError, IndexDamagedError):
        folder = derived / Path(parameters.get("folder") or "none").name
        (folder / f"rows.{new}.npz").unlink(missing_ok=True)  # of a compaction that was killed
        if parameters.get("kind") != "codes":
            ann.renumber(folder, parameters, live, old, new)
            return
        made = load(folder, parameters, old)
        rows = ann.moved(made.rows, live)
        entries = faiss_bytes(made.index)[rows >= 0]
        ann.record(folder, old, new, entries=entries, rows=rows[rows >= 0], covered=np.searchsorted(live, made.covered))
        for path in folder.glob("added.*.npy"):
            if path.name.split(".")[1] != str(old):
                path.unlink()


def faiss_bytes(index: Any) -> NDArray[np.uint8]:
    """The (n, bytes) codes in a binary index of FAISS, copied."""
    import faiss

    codes: NDArray[np.uint8] = faiss.vector_to_array(index.xb).reshape(index.ntotal, index.code_size)
    return codes


def write(path: Path, array: NDArray[Any]) -> None:
    """Writes a `.npy` file under its name when it is complete and synced."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.save(file, array)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
