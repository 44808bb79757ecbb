"""Exports of an index."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from simsearch.storage.export import export_npy, export_parquet
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
