"""Reads and writes the files of a sketch, which has short codes of the rows (see `sketch`).

The files are in `derived/<name>/` in the index's folder. Like all derived files, they are sealed with a SHA-256
(`simsearch.storage.derived`). `bounds.safetensors` has the `Bounds`, with which codes are computed. `rows.<first>.npy`
has the codes and errors of up to `PART` rows, from row `first` on. When rows are added, the last of these files is
replaced by a longer file. After that, `meta.json` is written, with the number of encoded rows and a checksum of their
features.

Shape letters: n rows, D dimension, w bytes of a code.
"""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

from simsearch.errors import IndexDamagedError
from simsearch.search.bounds import Bounds
from simsearch.search.faiss_files import pool
from simsearch.search.sketch import Sketch
from simsearch.storage import derived as sealed
from simsearch.storage.derived import structure_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.search.exact import FlatIndex
    from simsearch.storage.folder import Folder

PART, BLOCK = 16_384, 1024
"""Largest number of rows in a file, and number of rows that are encoded at once."""

BOUNDS = "bounds.safetensors"


@dataclass(frozen=True)
class SketchFacts:
    """The entry about the sketch in `meta.json`.

    folder: the name of the sketch's folder in `derived`; "" if there is no sketch because it would not help.
    compactions: the number of compactions of the feature files when the rows were encoded.
    rows: the number of encoded rows.
    blocks: the checksum of the encoded rows, from `identity`.
    widths: the number of bytes of a narrow and of a wide code.
    wanted: a search for ten neighbours first lists this number of rows, those with the nearest narrow codes.
    learned: the number of rows when the bounds were learned.
    measured: the number of rows when `left` was measured.
    left: two fractions of the rows: those that the narrow codes do not exclude, and those that the wide codes do not
    exclude either. Both are averages over some searches.
    first: the second fraction of `left`, as it was measured when the bounds were learned.
    """

    folder: str
    compactions: int
    rows: int
    blocks: int = 0
    widths: list[int] = field(default_factory=list)
    wanted: int = 0
    learned: int = 0
    measured: int = 0
    left: list[float] = field(default_factory=list)
    first: float = 0.0

    @classmethod
    def of(cls, values: dict[str, Any]) -> SketchFacts | None:
        """Returns the entry with the given values; None if a value is missing or invalid."""
        try:
            facts = cls(**values)
        except TypeError:
            return None
        lists = [(facts.widths, int), (facts.left, int | float)]
        numbers = [facts.compactions, facts.rows, facts.blocks, facts.wanted, facts.learned, facts.measured]
        right = isinstance(facts.folder, str) and isinstance(facts.first, int | float)
        right &= all(type(number) is int and 0 <= number < 1 << 40 for number in numbers)
        right &= all(isinstance(each, list) and all(isinstance(value, kind) for value in each) for each, kind in lists)
        if not right or (facts.folder and (len(facts.widths) != 2 or min(facts.widths) < 2)):
            return None
        return facts

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def in_place(self, index: Folder) -> bool:
        """Returns True if all files of the sketch exist. index: the index's folder."""
        try:
            folder = structure_folder(index, self.folder)
            return folder.exists(BOUNDS) and all(folder.exists(_part(first)) for first in range(0, self.rows, PART))
        except (OSError, IndexDamagedError):
            return False


def _part(first: int) -> str:
    return f"rows.{first}.npy"


def identity(blocks: list[tuple[int, int, int]], rows: int) -> int:
    """Returns a checksum of the first `rows` rows, from the checksums in `blocks` (see `Reader.blocks`)."""
    return crc32(repr([block for block in blocks if block[0] < rows]).encode())


def read_bounds(index: Folder, facts: SketchFacts, dimension: int) -> Bounds:
    """Reads the bounds of a sketch. index: the index's folder. dimension: D.

    Raises IndexDamagedError, SimsearchError or OSError if the file is missing or damaged.
    """
    folder = structure_folder(index, facts.folder)
    try:
        bounds = Bounds.load(sealed.read(folder, BOUNDS).tobytes(), dimension)
        if [grid.width for grid in bounds.grids] != facts.widths:
            raise ValueError("the widths of its codes are not those in meta.json")
    except (ValueError, KeyError, TypeError) as error:
        raise IndexDamagedError(f"the sketch {folder.path} cannot be used: {error}") from error
    return bounds


def load(index: Folder, facts: SketchFacts, dimension: int) -> Sketch:
    """Loads a sketch. index: the index's folder. dimension: D.

    Raises IndexDamagedError, SimsearchError or OSError if files are missing or damaged.
    """
    bounds, folder = read_bounds(index, facts, dimension), structure_folder(index, facts.folder)
    a, b = np.cumsum(facts.widths)
    try:
        narrow, wide = (np.empty((facts.rows, width), np.uint8) for width in facts.widths)
        errors = np.empty((facts.rows, 2), "<f4")
    except MemoryError as error:
        raise IndexDamagedError(f"{folder.path} does not have the {facts.rows:,} rows of meta.json") from error

    def read(first: int) -> None:
        part = _read(folder, facts, first)
        rows = slice(first, first + len(part))
        narrow[rows], wide[rows], errors[rows].view(np.uint8)[...] = part[:, :a], part[:, a:b], part[:, b:]

    list(pool().map(read, range(0, facts.rows, PART)))
    return Sketch(bounds, narrow, wide, errors, facts.wanted)


def _read(folder: Folder, facts: SketchFacts, first: int) -> NDArray[np.uint8]:
    """Reads the codes and errors in the file that begins with row `first`: (n, a + b + 8) uint8.

    Each row has a narrow code of a bytes, a wide code of b bytes, and the errors of the two codes as float32.
    Leaves out rows that are not recorded in `facts` yet. Raises IndexDamagedError.
    """
    part, count = sealed.read_array(folder, _part(first)), min(PART, facts.rows - first)
    if part.dtype != np.uint8 or part.ndim != 2 or part.shape[1] != sum(facts.widths) + 8 or len(part) < count:
        path = folder.path / _part(first)
        raise IndexDamagedError(f"{path} has fewer rows than meta.json records, or rows of another width")
    return part[:count]


def new_folder(index: Folder, made: Bounds) -> str:
    """Creates a folder for a sketch and writes the bounds into it; returns the folder's name. Raises OSError."""
    name = secrets.token_hex(8)
    sealed.write(structure_folder(index, name, create=True), BOUNDS, made.save())
    index.child(sealed.FOLDER).sync()
    return name


def extended(
    index: Folder, facts: SketchFacts, known: Bounds, flat: FlatIndex, blocks: list[tuple[int, int, int]]
) -> SketchFacts:
    """Encodes the rows that are not in the sketch yet, from row `facts.rows` on; returns the new entry for `meta.json`.

    known: the bounds of the sketch.
    blocks: from `Reader.blocks`.
    Raises IndexDamagedError, OSError.
    """
    folder = structure_folder(index, facts.folder)
    begin = facts.rows // PART * PART
    for first in range(begin, flat.rows, PART):
        kept = [_read(folder, facts, first)] if first < facts.rows else []
        start = max(first, facts.rows)
        stop = min(first + PART, flat.rows)
        kept += [
            _encoded(known, flat.read(np.arange(row, min(row + BLOCK, stop)))) for row in range(start, stop, BLOCK)
        ]
        sealed.write_array(folder, _part(first), np.concatenate(kept))
    return replace(facts, rows=flat.rows, blocks=identity(blocks, flat.rows))


def _encoded(known: Bounds, features: NDArray[np.float16]) -> NDArray[np.uint8]:
    """Returns the codes and errors of (n, D) features as they are stored in a file; for the form, see `_read`."""
    narrow, wide = known.encode(features)
    errors = np.stack([narrow.errors, wide.errors], 1).astype(np.float32)
    errors = np.nextafter(errors, np.float32(np.inf)).astype("<f4")  # rounded up
    return np.concatenate([narrow.codes, wide.codes, errors.view(np.uint8)], axis=1)
