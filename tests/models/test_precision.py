"""Half and full precision on a GPU, tested with stand-ins."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import simsearch
from simsearch.images.preprocessing import Preprocessing
from simsearch.models import registry
from simsearch.models.torch import runtime
from simsearch.models.torch.runtime import TorchModel, TorchRunner

if TYPE_CHECKING:
    from numpy.typing import NDArray


# -- half precision


def test_half_precision_is_used_where_it_agrees(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = registry.find_weights(str(tiny_weights))
    exact = TorchModel(file, "cpu")
    assert exact.engine == "torch-cpu"
    assert exact.decoder is None
    runner = TorchRunner(exact.recipe, "cpu")
    network = exact.network
    assert runner.agreement(network.features, network.features) == pytest.approx(1)
    runner.device = _Cuda()  # type: ignore[assignment]
    monkeypatch.setattr(TorchRunner, "_once", plainly)
    half, engine = runner.fastest(network, lambda network: network.features)
    assert engine == "torch-cuda-float16"
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float16}
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    pixels = np.random.default_rng(0).integers(0, 256, (5, 63, 63, 3), np.uint8)
    a, b = exact.features(pixels), runner.run(half.features, pixels)
    assert b.dtype == np.float32
    assert 0 < np.abs(a - b).max() < 0.01 * np.abs(a).max()
    monkeypatch.setenv("SIMSEARCH_PRECISION", "float32")
    assert runner.fastest(network, lambda network: network.features) == (network, "torch-cuda")


def test_gpu_without_room_keeps_first_network(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 8)).requires_grad_(False)

    def full(runner: TorchRunner, function: Any, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if next(function.parameters()).dtype == torch.float16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plainly(runner, function, pixels)

    monkeypatch.setattr(TorchRunner, "_once", full)
    runner = TorchRunner(Preprocessing(8, 8), "cpu")
    runner.device = _Cuda()  # type: ignore[assignment]
    assert runner.fastest(network, lambda network: network) == (network, "torch-cuda")
    assert runner.most is None


def test_memory_kept_by_torch_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a recording that failed; during one it is waited for."""
    recording, emptied = threading.Event(), threading.Event()

    def refused() -> None:
        assert not recording.is_set()
        emptied.set()
        raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    monkeypatch.setattr(torch.cuda, "empty_cache", refused)
    runner = TorchRunner(Preprocessing(8, 8), "cpu")

    def small(x: Tensor) -> Tensor:
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x.sum((2, 3))

    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
    with ThreadPoolExecutor(1) as pool:
        with simsearch.models.torch.cuda_graphs._recording:
            recording.set()
            found = pool.submit(runner.run, small, pixels)
            assert not emptied.wait(0.05)
            recording.clear()
        assert found.result(10).shape == (5, 3)
    assert emptied.is_set()


@pytest.mark.parametrize("scale", [300.0, 1e-9, float("nan")])
def test_failing_half_precision_is_not_used(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that float16 cannot hold, and features that are none."""
    linear = nn.Linear(3 * 64, 8).requires_grad_(False)
    linear.weight.mul_(scale)
    linear.bias.fill_(1e6 if scale == 300 else 0)
    network = nn.Sequential(nn.Flatten(), linear)
    runner = TorchRunner(Preprocessing(8, 8), "cpu")
    runner.device = _Cuda()  # type: ignore[assignment]
    monkeypatch.setattr(TorchRunner, "_once", plainly)
    assert runner.fastest(network, lambda network: network) == (network, "torch-cuda")


def test_half_and_full_precision_are_of_one_kind() -> None:
    assert registry.precision_of("torch-cuda-float16") == registry.precision_of("onnxruntime-cpu") == "float32"


class _Cuda:
    type = "cuda"


def plainly(runner: TorchRunner, function: Any, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """`TorchRunner._once` without streams."""
    with torch.inference_mode():
        return runner._step(function, torch.from_numpy(pixels)).numpy()


def test_full_precision_lasts_until_last_thread() -> None:
    states, log = [False], []

    @contextlib.contextmanager
    def setting() -> Any:
        log.append("in")
        states[0] = True
        yield
        states[0] = False
        log.append("out")

    together = runtime._Together(setting)
    first_in, first_may_go = threading.Event(), threading.Event()

    def first() -> None:
        with together():
            first_in.set()
            first_may_go.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    first_in.wait(10)
    with together():
        first_may_go.set()
        thread.join()
        assert states == [True]
    assert states == [False]
    with pytest.raises(ZeroDivisionError), together():
        _ = 1 / 0
    assert log == ["in", "out", "in", "out"]


# -- precision


@pytest.mark.parametrize("user", ["default", "high", "new", "convolutions", "products", "both"])
def test_full_precision_is_set_and_put_back(user: str) -> None:
    """Whichever of torch's interfaces the program around uses."""
    code = f"""
import warnings; warnings.simplefilter("error")
import torch
from simsearch.models.torch import runtime as torch_runtime
b = torch.backends
if {user!r} == "high": torch.set_float32_matmul_precision("high")
if {user!r} == "new": b.fp32_precision = "tf32"
if {user!r} == "convolutions": b.cudnn.conv.fp32_precision = "ieee"
if {user!r} == "both": b.cuda.matmul.allow_tf32 = True; b.cudnn.conv.fp32_precision = "ieee"
if {user!r} == "products": b.cuda.matmul.fp32_precision = "tf32"
def state():
    found = [b.fp32_precision, b.cudnn.fp32_precision, b.cudnn.conv.fp32_precision, b.cudnn.rnn.fp32_precision,
             b.cuda.matmul.allow_fp16_reduced_precision_reduction, b.cuda.matmul.fp32_precision]
    return found + ([] if {user!r} in ("new", "products") else [torch.get_float32_matmul_precision()])
before = state()
with torch_runtime._full(), torch_runtime._full():
    assert "tf32" not in state()[2:] and "high" not in state() and not state()[4], state()
    assert not b.cuda.matmul.allow_tf32
    if {user!r} in ("default", "high"):
        assert not b.cudnn.allow_tf32
assert state() == before, (before, state())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
