"""Rows of features read in any order."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from simsearch.engine import Engine
from simsearch.errors import IndexDamagedError, UsageError
from simsearch.storage.feature_files import FeatureFiles
from simsearch.storage.random_reader import RandomReader
from tests.helpers.filler import Filler


@pytest.mark.parametrize("few", [0, 512])
def test_rows_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    monkeypatch.setattr("simsearch.storage.random_reader.FEW", few)
    random = np.random.default_rng(0)
    shards = FeatureFiles(tmp_path, 12, rows_per_shard=50)
    features = random.normal(0, 1, (180, 12)).astype(np.float16)
    shards.write(0, features)
    rows = RandomReader(shards, 170)
    for chosen in (
        np.arange(170),
        np.arange(45, 105),
        random.permutation(170),
        np.array([7, 7, 6]),
        np.array([], np.int64),
        np.array([169]),
    ):
        np.testing.assert_array_equal(rows.read(chosen.astype(np.int64)), features[chosen])
    for wrong in ([170], [-1]):
        with pytest.raises(
            IndexDamagedError, match=r"of the features, but the index has only 170 rows, numbered from 0"
        ):
            rows.read(np.array(wrong))
    os.truncate(shards.path(1), 4096 + 24 * 20)
    with pytest.raises(IndexDamagedError, match="ends before row 80"):
        rows.read(np.array([60, 80]))
    shards.path(1).unlink()
    with pytest.raises(IndexDamagedError, match="No such file"):
        RandomReader(shards, 170)


def test_files_are_closed_with_their_rows(tmp_path: Path) -> None:
    shards = FeatureFiles(tmp_path, 12, rows_per_shard=50)
    shards.write(0, np.zeros((180, 12), np.float16))
    rows = RandomReader(shards, 180)
    files = list(rows._files)
    assert len(files) == 4 and os.fstat(files[0])
    del rows
    for descriptor in files:
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(descriptor)


def test_neighbours_are_what_a_search_finds(tmp_path: Path) -> None:
    filler = Filler(tmp_path / "index", 8)
    random = np.random.default_rng(1)
    filler.add(random.integers(0, 3, (300, 8)))
    filler.remove(range(5, 100, 3))
    with Engine(filler.path, model=filler.model) as engine:
        queries = random.integers(0, 3, (20, 8)).astype(np.float32)
        for where in (None, {"label": "two"}):
            ids, distances = engine.neighbours(queries, 5, where=where)
            for number, found in enumerate(engine.search_by_vectors(queries, 5, where=where)):
                assert ids[number].tolist() == [match.id for match in found]
                assert distances[number].tolist() == [match.distance for match in found]
        ids, distances = engine.neighbours(queries, 4, where=["n<2"])
        assert (ids[:, 2:] == -1).all() and np.isinf(distances[:, 2:]).all() and sorted(ids[0, :2]) == [1, 2]
        assert engine.neighbours(queries[:0], 4)[0].shape == (0, 4)
        with pytest.raises(UsageError, match="k is 0"):
            engine.neighbours(queries, 0)
        with pytest.raises(UsageError, match="not finite"):
            engine.neighbours(queries * np.nan, 1)
        with pytest.raises(UsageError, match="8 dimensions"):
            engine.neighbours(queries[:, :3], 1)


def test_ids_of_rows(tmp_path: Path) -> None:
    filler = Filler(tmp_path / "index", 4, 128)
    filler.add(np.zeros((5, 4), np.float16))
    with filler.engine.reading() as reader:
        assert reader.ids_at(np.array([4, 0, 4])) == {0: 1, 4: 5}  # a damaged structure may name a row twice
        with pytest.raises(IndexDamagedError, match="no item owns row 5 of the features"):
            reader.ids_at(np.array([0, 5]))
