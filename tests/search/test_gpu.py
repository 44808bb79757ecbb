"""Exact search on devices, with the CPU as one or several of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simsearch.engine import Engine
from simsearch.errors import DeviceError
from simsearch.models.onnx import runtime
from simsearch.search import exact as flat_index
from simsearch.search import gpu
from simsearch.search.exact import FlatIndex
from tests.helpers.filler import Filler

D = 24


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Filler:
    """2,500 items of which many tie, on devices of small chunks."""
    monkeypatch.setattr(gpu, "CHUNK", 512)
    monkeypatch.setattr(gpu, "BLOCK", 200)
    monkeypatch.setattr(gpu, "QUERIES", 16)
    monkeypatch.setattr(flat_index, "DIRECT", 8)
    filler = Filler(tmp_path / "index", D, rows_per_shard=700)
    filler.add(np.random.default_rng(0).integers(0, 4, (2500, D)).astype(np.float16))
    return filler


def on_devices(filler: Filler, names: list[str], before: FlatIndex | None = None) -> FlatIndex:
    index = FlatIndex(filler.engine.shards, filler.rows, lambda rows: names, before)
    index.search(np.zeros((1, D), np.float32), 1, None)
    assert index._resident is None or before is not None  # one search alone is not worth moving all rows
    return index


@pytest.mark.parametrize("names", [["cpu"], ["cpu", "cpu:0"]])
@pytest.mark.parametrize("count", [1, 40])
def test_agrees_with_the_scan(filled: Filler, names: list[str], count: int) -> None:
    there, here = on_devices(filled, names), FlatIndex(filled.engine.shards, filled.rows)
    random = np.random.default_rng(1)
    queries = random.integers(0, 4, (count, D)).astype(np.float32)
    queries[0] = 3e4
    for permitted in (None, np.sort(random.choice(2500, 900, replace=False)), np.arange(20)):
        for k in (1, 10, 300):
            for a, b in zip(here.search(queries, k, permitted), there.search(queries, k, permitted), strict=True):
                assert sorted(a.rows) == sorted(b.rows)
                np.testing.assert_array_equal(a.distances, b.distances)
    assert there._resident is not None and [c.last - c.first for c in there._resident._chunks] == [512] * 4 + [452]


def test_far_queries_are_measured_otherwise(filled: Filler) -> None:
    there, here = on_devices(filled, ["cpu"]), FlatIndex(filled.engine.shards, filled.rows)
    query = np.full((1, D), 1e30, np.float32)
    assert there.search(query, 3, None)[0].rows.tolist() == here.search(query, 3, None)[0].rows.tolist()


def test_whole_chunks_are_kept_when_items_come(filled: Filler) -> None:
    first = on_devices(filled, ["cpu"])
    query = np.ones((1, D), np.float32)
    first.search(query, 1, None)
    filled.add(np.ones((10, D), np.float16))
    second = on_devices(filled, ["cpu"], first)
    assert set(range(2500, 2510)) <= set(second.search(query, 10, None)[0].rows.tolist())
    assert first._resident is not None and second._resident is not None
    assert [
        a.features is b.features for a, b in zip(first._resident._chunks, second._resident._chunks, strict=True)
    ] == [True] * 4 + [False]


def test_without_room_the_cpu_scans(filled: Filler) -> None:
    none = on_devices(filled, [])
    assert len(none.search(np.ones((1, D), np.float32), 5, None)[0].rows) >= 5
    assert none._resident is None


def test_an_engine_on_a_device(filled: Filler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Filters, removals and a radius, through the API."""
    monkeypatch.setattr(runtime, "choose_device", lambda device: device)
    monkeypatch.setattr(gpu, "devices_for", lambda device, rows, dimension: ["cpu"])
    filled.remove(range(1, 600, 2))
    random = np.random.default_rng(2)
    with Engine(filled.path, model=filled.model, device="cuda") as engine:
        for _ in range(10):
            query = random.integers(0, 4, D).astype(np.float32)
            for options in ({}, {"where": {"label": "two"}}, {"max_distance": 4.5}, {"where": ["n<30"]}):
                assert engine.search_by_vector(query, 7, **options) == filled.engine.search_by_vector(
                    query, 7, **options
                )
        with engine.reading() as reader:
            flat = engine.snapshot(reader).flat
            assert isinstance(flat, FlatIndex) and flat._resident is not None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_device_is_error_even_if_unused(filled: Filler) -> None:
    with (
        Engine(filled.path, model=filled.model, device="cuda") as engine,
        pytest.raises(DeviceError, match="no usable GPU"),
    ):
        engine.search_by_id(filled.engine.find(1)[0].id)


def test_devices_are_those_with_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    free = {"cuda:0": 5 << 30, "cuda:1": 5 << 30}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda name: (free[name], 80 << 30))
    assert gpu.devices_for("cuda", 900_000, 4096) == ["cuda:0", "cuda:1"]
    assert gpu.devices_for("cuda:1", 400_000, 4096) == ["cuda:1"]
    assert gpu.devices_for("cuda:1", 900_000, 4096) == []
    assert gpu.devices_for("cuda", 2_000_000, 4096) == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.devices_for("cuda", 10, 4096) == []


def multiplied(a: Any, b: Any, out_dtype: Any) -> Any:
    """Multiplies as a GPU does with float16, more coarsely."""
    assert a.dtype == b.dtype == torch.float16
    product = a.float() @ b.float()
    return product * (1 - 2**-17)


@pytest.mark.parametrize("count", [1, 40])
def test_float16_queries_are_multiplied_directly(filled: Filler, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []

    def counted(a: Any, b: Any, out_dtype: Any) -> Any:
        used.append(len(a))
        return multiplied(a, b, out_dtype)

    monkeypatch.setattr(torch, "mm", counted)
    there, here = on_devices(filled, ["cpu"]), FlatIndex(filled.engine.shards, filled.rows)
    random = np.random.default_rng(1)
    queries = random.integers(0, 4, (count, D)).astype(np.float32)
    for change, as_they_are in ((0.0, True), (1e-5, False)):
        asked = queries + np.float32(change)
        for permitted in (None, np.sort(random.choice(2500, 900, replace=False))):
            for k in (1, 10, 300):
                used.clear()
                for a, b in zip(here.search(asked, k, permitted), there.search(asked, k, permitted), strict=True):
                    assert sorted(a.rows) == sorted(b.rows)
                    np.testing.assert_array_equal(a.distances, b.distances)
                assert (count in used or 16 in used) == as_they_are


@pytest.mark.parametrize("wrong", [0.99, float("nan")])
def test_wrong_float16_products_are_not_used(filled: Filler, wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "mm", lambda a, b, out_dtype: wrong * (a.float() @ b.float()))
    there, here = on_devices(filled, ["cpu"]), FlatIndex(filled.engine.shards, filled.rows)
    query = np.ones((1, D), np.float32)
    assert there.search(query, 5, None)[0].rows.tolist() == here.search(query, 5, None)[0].rows.tolist()
    assert there._resident is not None and not there._resident._half_products
