"""Reads and writes the last map of an index, `derived/map/positions`: items' positions on a plane, and their clusters.

The file ends with a seal, its SHA-256, like all files in `derived/`. Before the seal, it contains the length of a JSON
header, the header, and a record for each item. `simsearch.curation.map` makes maps; this module stores the last one, so
that the web page can show it at once.

Shape letters: n items.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common import outside_json
from simsearch.errors import IndexDamagedError
from simsearch.storage import derived
from simsearch.storage.folder import error_for

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.storage.folder import Folder

FILE = "positions"

MOST_CLUSTERS = 1000

_RECORD = np.dtype([("id", "<i8"), ("content", "<u8"), ("x", "<f4"), ("y", "<f4"), ("cluster", "<i4")])
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class NamedCluster:
    """A cluster of a map.

    name: the name to show. note: where the name comes from, a text to show; empty if the name is a number.
    """

    name: str
    note: str = ""


@dataclass(frozen=True)
class StoredMap:
    """A map of n items, sorted by id.

    ids: (n,) int64. contents: (n,) uint64, the `content_key` of each item. positions: (n, 2) float32.
    cluster_ids: (n,) int32, the cluster of each item, as an index into `clusters`.
    generation: the value of the index's counter of changes when the items were read; see `Reader.state`.
    facts: names and values of facts about the map, to show to people.
    """

    ids: NDArray[np.int64]
    contents: NDArray[np.uint64]
    positions: NDArray[np.float32]
    cluster_ids: NDArray[np.int32]
    clusters: Sequence[NamedCluster]
    generation: int
    facts: dict[str, str]


def content_key(digest: bytes) -> int:
    """Returns the first 64 bits of an item's SHA-256, to detect that an image has changed since the map was made."""
    return int.from_bytes(digest[:8], "little")


def stamp(index: Folder) -> tuple[int, ...] | None:
    """Returns numbers that change when a new map is stored; None if no map is stored. index: the index's folder.

    Raises SimsearchError if the system cannot look at the file.
    """
    try:
        facts = _folder(index).stat(FILE)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise error_for(index.path / derived.FOLDER, error) from error
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def write(index: Folder, drawn: StoredMap) -> None:
    """Stores a map, and replaces the last one atomically. index: the index's folder. Raises OSError."""
    header = {
        "generation": drawn.generation,
        "facts": drawn.facts,
        "clusters": [[cluster.name, cluster.note] for cluster in drawn.clusters],
    }
    records = np.empty(len(drawn.ids), _RECORD)
    records["id"], records["content"], records["cluster"] = drawn.ids, drawn.contents, drawn.cluster_ids
    records["x"], records["y"] = drawn.positions.T
    text = json.dumps(header).encode()
    derived.write(_folder(index, create=True), FILE, _LENGTH.pack(len(text)) + text + records.tobytes())


def read(index: Folder) -> StoredMap:
    """Reads the last map. index: the index's folder.

    Raises IndexDamagedError if the map is missing or damaged, and SimsearchError if the system cannot read it.
    """
    folder = _folder(index)
    data = derived.read(folder, FILE)
    try:
        (length,) = _LENGTH.unpack_from(data.data)
        header = outside_json.parse(bytes(data[_LENGTH.size : _LENGTH.size + length]))
        return _parsed(header, np.frombuffer(data[_LENGTH.size + length :].tobytes(), _RECORD))
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise IndexDamagedError(f"{folder.path / FILE} is not a map: {error}") from error


def _parsed(header: Any, records: NDArray[Any]) -> StoredMap:
    """Makes a `StoredMap` from the header and the records of a file.

    Checks the values, since the file may come from a stranger. Raises ValueError, KeyError, TypeError or AttributeError
    for an invalid value.
    """
    clusters = [NamedCluster(name, note) for name, note in header["clusters"]]
    facts, generation = header["facts"], header["generation"]
    texts = [text for cluster in clusters for text in (cluster.name, cluster.note)] + [*facts, *facts.values()]
    if not all(isinstance(text, str) for text in texts) or not isinstance(generation, int):
        raise ValueError("a value in its header has the wrong type")
    if len(clusters) > MOST_CLUSTERS:
        raise ValueError(f"it has {len(clusters):,} clusters, more than {MOST_CLUSTERS:,}")
    positions = np.stack([records["x"], records["y"]], 1).astype(np.float32)
    cluster_ids, ids = records["cluster"].astype(np.int32), records["id"].astype(np.int64)
    if len(ids) and not (cluster_ids.min() >= 0 and cluster_ids.max() < len(clusters)):
        raise ValueError("an item is in no cluster")
    if not np.isfinite(positions).all() or (np.diff(ids) <= 0).any():
        raise ValueError("a position is not finite, or the ids do not ascend")
    return StoredMap(ids, records["content"].astype(np.uint64), positions, cluster_ids, clusters, generation, facts)


def _folder(index: Folder, create: bool = False) -> Folder:
    return index.child(derived.FOLDER, create).child(derived.MAP_FOLDER, create)
