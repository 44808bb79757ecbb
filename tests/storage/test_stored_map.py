"""The map that is kept with an index: read back as it was, and refused where it is damaged or hostile."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simsearch.errors import IndexDamagedError
from simsearch.storage import derived, stored_map
from simsearch.storage.folder import Folder
from simsearch.storage.stored_map import NamedCluster, StoredMap


def drawn() -> StoredMap:
    return StoredMap(
        ids=np.array([1, 4, 9]),
        contents=np.array([7, 2**64 - 1, 0], np.uint64),
        positions=np.array([[0.5, -1], [2, 3], [4, 5]], np.float32),
        cluster_ids=np.array([1, 0, 0], np.int32),
        clusters=[NamedCluster("cat", "90% of the labels"), NamedCluster("Ü\n")],
        generation=3,
        facts={"pictures": "3"},
    )


def test_read_as_written(tmp_path: Path) -> None:
    index = Folder.at(tmp_path)
    assert stored_map.stamp(index) is None
    with pytest.raises(IndexDamagedError):
        stored_map.read(index)
    stored_map.write(index, drawn())
    first, found = stored_map.stamp(index), stored_map.read(index)
    for name in ("ids", "contents", "positions", "cluster_ids"):
        np.testing.assert_array_equal(getattr(found, name), getattr(drawn(), name))
    assert (found.clusters, found.generation, found.facts) == (drawn().clusters, 3, {"pictures": "3"})
    stored_map.write(index, replace(drawn(), generation=4))
    assert stored_map.stamp(index) != first and stored_map.read(index).generation == 4
    assert derived.problems(index) == []


def test_damage_is_found(tmp_path: Path) -> None:
    index = Folder.at(tmp_path)
    stored_map.write(index, drawn())
    file = tmp_path / "derived" / "map" / "positions"
    data = bytearray(file.read_bytes())
    data[20] ^= 1
    file.write_bytes(data)
    with pytest.raises(IndexDamagedError, match="SHA-256"):
        stored_map.read(index)
    assert len(derived.problems(index)) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"clusters": []},
        {"clusters": [["a", 1]]},
        {"clusters": [["a", ""]] * 1001},
        {"facts": {"a": 1}},
        {"facts": []},
        {"generation": "1"},
        {"generation": None},
    ],
)
def test_hostile_headers(tmp_path: Path, change: dict[str, object]) -> None:
    index = Folder.at(tmp_path)
    stored_map.write(index, drawn())
    folder = index.child("derived").child("map")
    data = bytes(derived.read(folder, "positions"))
    length = struct.unpack_from("<Q", data)[0]
    header = json.dumps({**json.loads(data[8 : 8 + length]), **change}).encode()
    derived.write(folder, "positions", struct.pack("<Q", len(header)) + header + data[8 + length :])
    with pytest.raises(IndexDamagedError, match="is not a map"):
        stored_map.read(index)


@pytest.mark.parametrize("data", [b"", b"\xff" * 8, struct.pack("<Q", 2**60), struct.pack("<Q", 2) + b"{}x"])
def test_hostile_files(tmp_path: Path, data: bytes) -> None:
    index = Folder.at(tmp_path)
    derived.write(index.child("derived", True).child("map", True), "positions", data)
    with pytest.raises(IndexDamagedError, match="is not a map"):
        stored_map.read(index)


@pytest.mark.parametrize(
    "change",
    [
        {"ids": np.array([4, 1, 9])},
        {"ids": np.array([1, 1, 9])},
        {"cluster_ids": np.array([2, 0, 0], np.int32)},
        {"cluster_ids": np.array([-1, 0, 0], np.int32)},
        {"positions": np.full((3, 2), np.nan, np.float32)},
    ],
)
def test_hostile_records(tmp_path: Path, change: dict[str, Any]) -> None:
    index = Folder.at(tmp_path)
    stored_map.write(index, replace(drawn(), **change))
    with pytest.raises(IndexDamagedError, match="is not a map"):
        stored_map.read(index)
