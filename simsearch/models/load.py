"""Loading a model by name, on the device and in the precision asked for."""

from __future__ import annotations

from collections.abc import Callable

from simsearch.errors import DeviceError
from simsearch.models.base import Model
from simsearch.models.registry import DEFAULT, FEW, TORCHVISION, find_weights


def load_model(
    name: str = DEFAULT,
    device: str = "auto",
    *,
    images: int | None = None,
    threads: bool = False,
    precision: str = "float32",
) -> Model:
    """Loads a model by name, ready to compute.

    device: "auto", "cpu", "cuda" or "cuda:N". "auto" takes a GPU if there is one and the work is worth its start-up.
    images: how many are expected, if known; a handful is done sooner without preparing for many. threads: several
    threads will compute at once, so on the CPU each takes no more than its share of the cores. precision: "float32",
    "int8" (on the CPU, if the weights allow it), or "auto": see `precision.choose_precision`.
    """
    from simsearch.models.onnx import runtime
    from simsearch.models.precision import choose_precision

    few = images is not None and images <= FEW
    if precision == "int8":
        if device.startswith("cuda"):
            raise DeviceError(f"int8 runs on the CPU, not on {device}", hint="--device cpu")
        device = "cpu"
    chosen = runtime.choose_device(device, few)
    if name.startswith(TORCHVISION) and not name.endswith(".safetensors"):
        from simsearch.models.torch.torchvision import TorchvisionModel

        found = _on_gpu(lambda: TorchvisionModel(name, chosen), device) if chosen != "cpu" else None
        return found or TorchvisionModel(name, "cpu")
    weights = find_weights(name)
    if chosen != "cpu":
        from simsearch.models.torch.runtime import TorchModel

        if (found := _on_gpu(lambda: TorchModel(weights, chosen), device)) is not None:
            return found
    precision = choose_precision(weights) if precision == "auto" else precision
    return runtime.OnnxModel(weights, few=few, threads=threads and not few, precision=precision)


def _on_gpu(make: Callable[[], Model], asked: str) -> Model | None:
    """What `make` makes; None where it cannot and any device would do. Raises DeviceError where this one was asked for.

    A GPU may be filled by others, say.
    """
    try:
        return make()
    except (RuntimeError, DeviceError) as error:
        if asked != "auto":
            raise DeviceError(f"device {asked!r} cannot be used: {error}", hint="--device cpu") from error
    return None
