"""Reads and writes derived files: files in `derived/` that can be made again from the features.

Each file ends with a seal of 48 bytes: a fixed mark, and the SHA-256 of the folder's name, the file's name and the
content. A file is read whole and compared with its seal before anything interprets it. A damaged file, or a file of
another index, therefore never reaches the native code of NumPy or FAISS. Content and seal are written together,
atomically.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common.atomic_files import is_partial
from simsearch.errors import IndexDamagedError
from simsearch.storage.feature_files import WITHOUT_HOLES, has_holes
from simsearch.storage.folder import error_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from simsearch.storage.folder import Folder

FOLDER = "derived"

WORK_FOLDER = "work"
"""Subfolder of `derived/` for the files of a build on a cluster, which have checks of their own instead of seals."""

MAP_FOLDER = "map"
"""Subfolder of `derived/` for the last map; see `simsearch.storage.stored_map`."""

SEAL = 48
"""Length of a seal in bytes."""

_MARK = b"simsearch sha256"
_NAME = re.compile(r"[0-9a-f]{16}")
_BLOCK = 1 << 20


def write(folder: Folder, name: str, data: bytes | memoryview) -> None:
    """Writes `data` and a seal (a SHA-256 at the end) to a file, atomically and durably. Raises OSError."""
    folder.write(name, data, _MARK + _digest(folder, name, [memoryview(data)]))


def write_array(folder: Folder, name: str, array: NDArray[Any]) -> None:
    """Writes an array as a `.npy` file with a seal (a SHA-256 at the end). Raises OSError."""
    data = io.BytesIO()
    np.save(data, array, allow_pickle=False)
    write(folder, name, data.getbuffer())


def read(folder: Folder, name: str) -> NDArray[np.uint8]:
    """Checks the seal of a file, and returns the content before the seal: (n,) uint8.

    Raises IndexDamagedError if the file is missing or damaged or belongs to another folder, and SimsearchError if the
    system cannot read it.
    """
    path = folder.path / name
    try:
        with open(folder.open(name), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            mark = os.pread(file.fileno(), SEAL, max(0, size - SEAL))
            if size < SEAL or not mark.startswith(_MARK):
                raise IndexDamagedError(f"{path} is damaged or has no SHA-256")
            if size > WITHOUT_HOLES and has_holes(file.fileno()):
                raise IndexDamagedError(f"{path} has holes: parts of it were never written")
            data = np.fromfile(file, np.uint8, size - SEAL)
    except OSError as error:
        raise error_for(path, error) from error
    if len(data) != size - SEAL or mark[len(_MARK) :] != _digest(folder, name, [data.data]):
        raise IndexDamagedError(f"{path} does not match its SHA-256")
    return data


def read_array(folder: Folder, name: str) -> NDArray[Any]:
    """Returns the array in a `.npy` file, after checking the file's seal. Raises the same errors as `read`."""
    data = read(folder, name)
    try:
        array: NDArray[Any] = np.load(io.BytesIO(data.data), allow_pickle=False)
    except Exception as error:  # hostile headers make NumPy raise nearly anything
        raise IndexDamagedError(f"{folder.path / name}: {error}") from error
    if not isinstance(array, np.ndarray):
        raise IndexDamagedError(f"{folder.path / name} does not hold exactly one array")
    return array


def read_arrays(folder: Folder, name: str) -> dict[str, NDArray[Any]]:
    """Checks the seal of a `.npz` file; returns a dict from names to arrays. Raises the same errors as `read`."""
    data = read(folder, name)
    try:
        with np.load(io.BytesIO(data.data), allow_pickle=False) as file:
            return dict(file)
    except Exception as error:
        raise IndexDamagedError(f"{folder.path / name}: {error}") from error


def structure_folder(index: Folder, name: str, create: bool = False) -> Folder:
    """Opens the subfolder of `derived/` that has the files of one search structure.

    A search structure makes searches faster: an approximate search, or a sketch (short codes of all rows).
    index: the index's folder. create: True to create the subfolder if it is missing.
    name: the name of the subfolder, 16 hexadecimal digits chosen at random.
    Raises IndexDamagedError for a name that does not consist of 16 hexadecimal digits. Raises OSError.
    """
    if not _NAME.fullmatch(name):
        raise IndexDamagedError(f"{index.path / FOLDER}: {name!r} is not the name of an approximate search or a sketch")
    return index.child(FOLDER, create).child(name, create)


def problems(index: Folder) -> list[str]:
    """Checks the seals of all derived files of an index; returns a message for each damaged file.

    Raises SimsearchError if the system cannot read a file.
    """
    found = []
    for folder, name in _files(index):
        try:
            read(folder, name)
        except IndexDamagedError as error:
            if folder.exists(name):  # otherwise it was deleted meanwhile
                found.append(str(error))
    return found


def _files(index: Folder) -> Iterator[tuple[Folder, str]]:
    """Yields (folder, name) of each derived file of an index.

    Leaves out files that are still being written, and the folder `derived/work/`, where a build on several machines
    keeps its files.
    """
    try:
        top = index.child(FOLDER)
        if not index.exists(FOLDER):
            return
        for name in sorted(top.names()):
            if name == WORK_FOLDER or is_partial(name):
                continue
            folder = top.child(name)
            if not folder.exists("."):
                yield top, name
                continue
            yield from ((folder, each) for each in sorted(folder.names()) if not is_partial(each))
    except OSError as error:
        raise error_for(index.path / FOLDER, error) from error


def _digest(folder: Folder, name: str, parts: list[memoryview]) -> bytes:
    digest = hashlib.sha256(f"{folder.path.name}/{name}\0".encode("utf-8", "surrogateescape"))
    for part in parts:
        digest.update(part)
    return digest.digest()
