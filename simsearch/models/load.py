"""Loads a model by name, on a chosen device and in a chosen precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from simsearch.common.lazy import LazyModule
from simsearch.errors import DeviceError
from simsearch.models.base import Model
from simsearch.models.onnx import runtime
from simsearch.models.precision import choose_precision
from simsearch.models.registry import DEFAULT, FEW, TORCHVISION, find_weights

if TYPE_CHECKING:
    from simsearch.models.torch import runtime as torch_runtime
    from simsearch.models.torch import torchvision as torchvision_models
else:  # both import torch, which takes seconds
    torch_runtime = LazyModule("simsearch.models.torch.runtime")
    torchvision_models = LazyModule("simsearch.models.torch.torchvision")


def load_model(
    name: str = DEFAULT,
    device: str = "auto",
    *,
    images: int | None = None,
    threads: bool = False,
    precision: str = "float32",
) -> Model:
    """Loads a model by name, ready to compute.

    name: a built-in model, `torchvision/<name>`, or the path of a weights file.
    device: "auto", "cpu", "cuda" or "cuda:N"; "auto" takes a GPU if there is one and there are enough images for it.
    images: the expected number of images, if known; for a few, the model starts faster but computes more slowly.
    threads: several threads will compute at once; on the CPU each then uses only a part of the cores.
    precision: "float32", "int8" (on the CPU, if the weights allow it), or "auto", see `precision.choose_precision`.

    Raises UsageError for an unknown name, WeightsError for an unusable file, and DeviceError for an unusable device.
    """
    few = images is not None and images <= FEW
    if precision == "int8":
        if device.startswith("cuda"):
            raise DeviceError(f"int8 runs on the CPU, not on {device}", hint="--device cpu")
        device = "cpu"
    chosen = runtime.choose_device(device, few)
    if name.startswith(TORCHVISION) and not name.endswith(".safetensors"):
        model = _on_gpu(lambda: torchvision_models.TorchvisionModel(name, chosen), device) if chosen != "cpu" else None
        return model or torchvision_models.TorchvisionModel(name, "cpu")
    weights = find_weights(name)
    if chosen != "cpu" and (model := _on_gpu(lambda: torch_runtime.TorchModel(weights, chosen), device)) is not None:
        return model
    precision = choose_precision(weights) if precision == "auto" else precision
    return runtime.OnnxModel(weights, few=few, threads=threads and not few, precision=precision)


def _on_gpu(make: Callable[[], Model], requested: str) -> Model | None:
    """Calls `make`; if it fails on a GPU that "auto" chose, because its memory is full for example, returns None.

    Raises DeviceError if it fails on a GPU that was requested by name.
    """
    try:
        return make()
    except (RuntimeError, DeviceError) as error:
        if requested != "auto":
            raise DeviceError(f"device {requested!r} cannot be used: {error}", hint="--device cpu") from error
    return None
