"""Loads a model by name, on a chosen device and in a chosen precision."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from simsearch.common.lazy import LazyModule
from simsearch.errors import DeviceError, MissingExtraError, UsageError
from simsearch.models.base import Model
from simsearch.models.onnx import runtime
from simsearch.models.precision import QUANTIZE, choose_precision
from simsearch.models.registry import DEFAULT, FEW, ONNX, TORCHVISION, check_device, find_weights
from simsearch.models.training_record import TrainingRecord
from simsearch.models.weights import read_record

if TYPE_CHECKING:
    from simsearch.models.onnx import exported, onnx_file
    from simsearch.models.torch import export as torch_export
    from simsearch.models.torch import runtime as torch_runtime
    from simsearch.models.torch import torchvision as torchvision_models
else:  # imported when first used: only some models need them, and torch takes seconds to import
    exported = LazyModule("simsearch.models.onnx.exported")
    onnx_file = LazyModule("simsearch.models.onnx.onnx_file")
    torch_export = LazyModule("simsearch.models.torch.export")
    torch_runtime = LazyModule("simsearch.models.torch.runtime")
    torchvision_models = LazyModule("simsearch.models.torch.torchvision")

log = logging.getLogger(__name__)


def load_model(
    name: str = DEFAULT,
    device: str = "auto",
    *,
    images: int | None = None,
    threads: bool = False,
    precision: str = "float32",
) -> Model:
    """Loads a model by name, ready to compute.

    name: a built-in model, `torchvision/<name>`, or the path of a .safetensors or .onnx file.
    device: "auto", "cpu", "cuda" or "cuda:N"; "auto" takes a GPU if there is one, unless few images are expected.
    images: the expected number of images, if known. Up to 32 (`FEW`) count as few; the model then starts faster, but
    computes more slowly.
    threads: True if several threads will compute at once; on the CPU, each thread then uses only a part of the cores,
    unless few images are expected.
    precision: "float32", "int8" (only on the CPU, and if the weights allow it), or "auto". On the CPU, "auto" is
    int8 if that is accurate and fast, otherwise float32 (see `precision.choose_precision`). A network of torchvision or
    of an .onnx file always computes in its own precision.

    Raises UsageError for an unknown name or if the model cannot run in int8, WeightsError for an unusable file, and
    DeviceError for an unusable device.
    """
    few = images is not None and images <= FEW
    if precision == "int8":
        if device.startswith("cuda"):
            raise DeviceError(f"int8 runs on the CPU, not on {device}", hint='device="cpu"', shell_hint="--device cpu")
        device = "cpu"
    if name.endswith(ONNX):
        check_device(device)
        if device.startswith("cuda"):
            raise DeviceError(
                f"{name} runs in ONNX Runtime on the CPU, not on {device}",
                hint='device="cpu"',
                shell_hint="--device cpu",
            )
        return _in_its_precision(onnx_file.open_onnx(onnx_file.find_onnx(name), few), precision)
    chosen = runtime.choose_device(device, few)
    if is_torchvision(name):
        model = _on_gpu(lambda: torchvision_models.TorchvisionModel(name, chosen), device) if chosen != "cpu" else None
        return _in_its_precision(model or _torchvision_on_cpu(name, few), precision)
    weights = find_weights(name)
    if chosen != "cpu" and (model := _on_gpu(lambda: torch_runtime.TorchModel(weights, chosen), device)) is not None:
        return model
    precision = choose_precision(weights) if precision == "auto" else precision
    return runtime.OnnxModel(weights, few=few, threads=threads and not few, precision=precision)


def _on_gpu(make: Callable[[], Model], requested: str) -> Model | None:
    """Returns the model that `make` loads on a GPU; None if that fails and the caller did not ask for the GPU by name.

    requested: the device that the caller of `load_model` asked for.
    Raises DeviceError if `make` fails and the caller asked for the GPU by name.
    """
    try:
        return make()
    except (RuntimeError, DeviceError) as error:
        if requested != "auto":
            raise DeviceError(
                f"device {requested!r} cannot be used: {error}", hint='device="cpu"', shell_hint="--device cpu"
            ) from error
    return None


def weights_sha256(name: str) -> str:
    """Returns the SHA-256 that identifies the weights of a named model. Raises the errors of `load_model`."""
    if name.endswith(ONNX):
        return onnx_file.find_onnx(name).sha256
    return load_model(name, "cpu", images=1).weights_sha256 if is_torchvision(name) else find_weights(name).sha256


def training_record(name: str | None) -> TrainingRecord:
    """Returns the record of a model's training pictures and held-out pictures.

    The record is empty for networks of torchvision and .onnx files. name: as for `load_model`; None for the default.
    """
    name = name or DEFAULT
    if name.endswith(ONNX) or is_torchvision(name):
        return TrainingRecord()
    return read_record(find_weights(name).path)


def is_torchvision(name: str) -> bool:
    """Returns true for `torchvision/<name>`, but not for a weights file in a folder called torchvision."""
    return name.startswith(TORCHVISION) and not name.endswith((".safetensors", ONNX))


def _torchvision_on_cpu(name: str, few: bool) -> Model:
    """Loads a network of torchvision in ONNX Runtime, or in torch if it cannot be converted.

    The conversion needs the package `onnx`.
    few: True to start faster in ONNX Runtime, but compute more slowly.
    """
    try:
        model = exported.open_exported(name, functools.partial(_export, name), few)
    except MissingExtraError as error:
        log.info("%s, so each command takes some seconds longer to start; %s", error, error.hint)
        model = None
    return model or torchvision_models.TorchvisionModel(name, "cpu")


def _export(name: str, folder: Path) -> None:
    torch_export.export(name, folder)


def _in_its_precision(model: Model, requested: str) -> Model:
    if requested == "int8":
        raise UsageError(f"{model.name} cannot run in int8", hint=QUANTIZE)
    return model
