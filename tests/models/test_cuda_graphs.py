"""Recorded CUDA graphs and streams, tested with stand-ins."""

from __future__ import annotations

import contextlib
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from simsearch.images.preprocessing import Preprocessing
from simsearch.models.torch import runtime
from simsearch.models.torch.cuda_graphs import MOST, WARM, CudaGraphCache
from simsearch.models.torch.runtime import TorchRunner
from tests.helpers.jpegs import CPU, recording


def test_a_shape_is_recorded_and_replayed() -> None:
    recorded = []
    replays = CudaGraphCache(lambda step, x: recorded.append(x.shape) or recording(step, x))  # type: ignore[func-returns-value]
    for number in range(8):
        x = torch.full((4, 3), float(number))
        assert torch.equal(replays.run("double", lambda x: 2 * x, x, CPU), 2 * x)
        assert len(replays) == (number >= WARM - 1)
    assert recorded == [(4, 3)]
    assert torch.equal(replays.run("triple", lambda x: 3 * x, x, CPU), 3 * x)  # another function
    assert torch.equal(replays.run("double", lambda x: 2 * x, x[:2], CPU), 2 * x[:2])  # another shape


def test_no_more_shapes_than_memory_is_meant_for() -> None:
    replays = CudaGraphCache(recording)
    for size in range(1, MOST + 4):
        for _ in range(WARM + 1):
            assert torch.equal(replays.run("f", lambda x: x + 1, torch.ones(size), CPU), torch.full((size,), 2.0))
    assert len(replays) == MOST


@pytest.mark.parametrize("problem", ["error", "memory", "wrong", "nan"])
def test_a_recording_that_fails_is_not_used(problem: str) -> None:
    def capture(step: Any, x: Tensor) -> tuple[Any, Tensor]:
        if problem == "error":
            raise RuntimeError("operation not permitted when stream is capturing")
        if problem == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        _, y = recording(step, x)
        return (lambda: None) if problem == "nan" else (lambda: y.copy_(1.1 * step(x))), y

    replays, x = CudaGraphCache(capture), torch.ones(4)
    for _ in range(6):
        assert torch.equal(replays.run("f", lambda x: x + 1, x, CPU), x + 1)
    assert len(replays) == 0


def test_an_error_of_the_network_is_its_own() -> None:
    def failing(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        CudaGraphCache(recording).run("f", failing, torch.ones(4), CPU)


# -- streams


class Stream:
    def wait_stream(self, other: Any) -> None: ...


def test_stream_is_lent_to_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, inside, most = TorchRunner(Preprocessing(8, 8), "cpu"), set[int](), 0
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(Tensor, "pin_memory", lambda x: x)
    runner._free = queue.SimpleQueue()
    replays = [CudaGraphCache(recording), CudaGraphCache(recording)]
    for each in replays:
        runner._free.put(runtime._Lane(Stream(), each))  # type: ignore[arg-type]

    def network(x: Tensor) -> Tensor:
        nonlocal most
        inside.add(threading.get_ident())
        most = max(most, len(inside))
        total = x.sum((2, 3))
        inside.remove(threading.get_ident())
        return total

    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    expected = TorchRunner(Preprocessing(8, 8), "cpu").run(network, pixels)
    with ThreadPoolExecutor(6) as pool:
        for found in pool.map(lambda _: runner.run(network, pixels), range(60)):
            assert np.array_equal(found, expected)
    assert most <= 2
    assert {len(each) for each in replays} <= {0, 1}
    assert any(len(each) for each in replays)
    assert runner._free.qsize() == 2
    with pytest.raises(ZeroDivisionError):
        runner.run(lambda x: 1 / 0, pixels)  # type: ignore[arg-type,return-value]
    assert runner._free.qsize() == 2
