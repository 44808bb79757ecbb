"""Search without room on its GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import simsearch
from simsearch.models.onnx import runtime
from simsearch.search import gpu
from tests.helpers.filler import Filler


def test_search_goes_on_without_device_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filler = Filler(tmp_path / "index", 32)
    filler.add(np.random.default_rng(0).random((500, 32)).astype(np.float16))
    query = np.random.default_rng(1).random(32).astype(np.float32)
    expected = filler.engine.search_by_vector(query)
    monkeypatch.setattr(runtime, "choose_device", lambda device: device)
    monkeypatch.setattr(gpu, "devices_for", lambda *_: ["cpu"])
    with simsearch.open(filler.path, model=filler.model, device="cuda") as engine:
        engine.search_by_vector(query)
        assert engine.search_by_vector(query) == expected
        with engine.reading() as reader:
            flat = engine.snapshot(reader).flat
        assert getattr(flat, "_resident") is not None  # noqa: B009

        def full(*_: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(gpu.GpuIndex, "_scan", full)
        assert engine.search_by_vector(query) == expected
        assert getattr(flat, "_resident") is None  # noqa: B009
        assert engine.search_by_vector(query) == expected
