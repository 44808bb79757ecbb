"""Exports of an index."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from simsearch.errors import UsageError
from simsearch.storage.export import MapColumns, export_npy, export_parquet
from tests.helpers.filler import Filler


def test_parquet_holds_what_npy_holds(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    filler = Filler(tmp_path / "index", 6)
    assert export_parquet(filler.engine.index, tmp_path / "empty") == 0
    filler.add(np.random.default_rng(0).normal(0, 1, (50, 6)))
    filler.remove([3, 9])
    assert (
        export_npy(filler.engine.index, tmp_path / "out") == export_parquet(filler.engine.index, tmp_path / "out") == 48
    )
    table = parquet.read_table(tmp_path / "out" / "items.parquet")
    features = np.array(table.column("features").to_pylist(), np.float32)
    np.testing.assert_array_equal(features, np.load(tmp_path / "out" / "features.npy"))
    lines = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    for name in ("id", "path", "label"):
        assert table.column(name).to_pylist() == [line[name] for line in lines]
    assert [json.loads(text) for text in table.column("metadata").to_pylist()] == [line["metadata"] for line in lines]


def test_an_interrupted_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    filler = Filler(tmp_path / "index", 8)
    filler.add(np.ones((30, 8)))
    monkeypatch.setattr("simsearch.storage.export._ROWS", 10)

    def interrupt(done: int, total: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    for export in (export_npy, export_parquet):
        with pytest.raises(KeyboardInterrupt):
            export(filler.engine.index, tmp_path / "out", interrupt)
        assert list((tmp_path / "out").iterdir()) == []


def test_parquet_with_a_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours are rows of the file, as embedding-atlas wants them; items that came later have none."""
    pyarrow = pytest.importorskip("pyarrow")
    monkeypatch.setattr("simsearch.storage.export._ROWS", 3)
    filler = Filler(tmp_path / "index", 4)
    filler.add(np.random.default_rng(0).normal(0, 1, (7, 4)))
    filler.remove([2])
    drawn = MapColumns(
        np.array([1, 3, 4, 5]),
        np.arange(8, dtype=np.float32).reshape(4, 2),
        np.array([0, 0, 1, 1], np.int32),
        ["cats", "dogs \udcff"],
        np.array([[1, 3], [0, 2], [3, 1], [2, -1]]),
        np.array([[0.5, 1.5], [0.5, 2.5], [3.5, 4.5], [3.5, np.inf]]),
    )
    assert export_parquet(filler.engine.index, tmp_path / "out", drawn=drawn) == 6
    table = pyarrow.parquet.read_table(tmp_path / "out" / "items.parquet")
    assert table.column("id").to_pylist() == [1, 3, 4, 5, 6, 7]
    assert table.column("x").to_pylist() == [0, 2, 4, 6, None, None]
    assert table.column("y").to_pylist() == [1, 3, 5, 7, None, None]
    assert table.column("cluster").to_pylist() == [0, 0, 1, 1, None, None]
    assert table.column("cluster_name").to_pylist() == ["cats", "cats", *["dogs \ufffd"] * 2, None, None]
    assert table.schema.field("neighbours").type == pyarrow.struct(
        [("ids", pyarrow.list_(pyarrow.int64())), ("distances", pyarrow.list_(pyarrow.float32()))]
    )
    assert table.column("neighbours").to_pylist() == [
        {"ids": [1, 3], "distances": [0.5, 1.5]},
        {"ids": [0, 2], "distances": [0.5, 2.5]},
        {"ids": [3, 1], "distances": [3.5, 4.5]},
        {"ids": [2], "distances": [3.5]},
        None,
        None,
    ]
    filler.remove([4])
    with pytest.raises(UsageError, match="removed while the map was drawn"):
        export_parquet(filler.engine.index, tmp_path / "again", drawn=drawn)
    assert list((tmp_path / "again").iterdir()) == []
