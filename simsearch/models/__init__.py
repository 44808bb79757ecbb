"""The model registry: names that stand for a network, its weights and its recipe.

A name is one of `BUILTIN`, or `torchvision/<name>` for a network and the official weights of torchvision, or the path
of a `.safetensors` file that simsearch wrote. Importing this module imports neither torch nor ONNX Runtime.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from simsearch.errors import DeviceError, UsageError, WeightsError
from simsearch.models.configs import AlexNetConfig, Config, ConvNet4Config, LeNet5Config
from simsearch.models.weights import Card, read_card, sha256, sha256_without_ranges

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from simsearch.recipe import Recipe

DEFAULT = "alexnet-distilled"

TORCHVISION = "torchvision/"
"""Names with this beginning are torchvision's networks."""

FEW = 32
"""Up to this many images are not worth the start of CUDA, nor rearranging the weights for speed."""

PRECISIONS = ("float32", "int8")
"""What the features are computed in."""

BUILTIN: dict[str, str] = {
    "alexnet-distilled": "alexnet-distilled.safetensors",
    "alexnet": "alexnet.safetensors",
}
"""Names of the weights inside the package, and their files under `simsearch/weights/`."""

ARCHITECTURES: dict[str, Any] = {
    "alexnet": AlexNetConfig,
    "lenet5": LeNet5Config,
    "convnet4": ConvNet4Config,
}
"""Networks that a weights file may name, and the configuration of each."""


class Model(Protocol):
    """What the engine needs of a model; any object with these members will do.

    name: how to get it again from `load`. weights_sha256: identifies the weights. dimension: D.
    engine: what computes, such as "onnxruntime-cpu". distances: see `Card`; may be empty. A model that profits from
    several threads that call `features` at once says how many by an attribute `lanes`; one whose device decodes JPEGs
    has a `jpegs.JpegDecoder` as `decoder`.
    """

    @property
    def name(self) -> str: ...
    @property
    def weights_sha256(self) -> str: ...
    @property
    def dimension(self) -> int: ...
    @property
    def recipe(self) -> Recipe: ...
    @property
    def engine(self) -> str: ...
    @property
    def distances(self) -> tuple[float, ...]: ...

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, S, S, 3) uint8 RGB from `recipe.pixels` -> (B, D) float32."""
        ...


@dataclass(frozen=True)
class WeightsFile:
    """A weights file found by name: where it is, what it says of itself, and its SHA-256."""

    name: str
    path: Path
    card: Card
    sha256: str

    @property
    def config(self) -> Config:
        """The network's configuration. Raises WeightsError where the header's arguments do not fit."""
        try:
            found: Config = ARCHITECTURES[self.card.architecture](**self.card.arguments)
        except KeyError:
            known = ", ".join(ARCHITECTURES)
            raise WeightsError(f"{self.path}: architecture {self.card.architecture!r} is none of {known}") from None
        except TypeError as error:
            raise WeightsError(f"{self.path}: {error}") from error
        return found


def check_device(device: str) -> None:
    """Raises DeviceError for a word that names no device; whether it is there is seen when a model is loaded."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise DeviceError(f"no device is called {device!r}", hint="auto, cpu, cuda or cuda:N")


def find(name: str) -> WeightsFile:
    """The weights file that `name` stands for (a built-in name or a path). Raises UsageError for anything else."""
    if name in BUILTIN:
        path = Path(__file__).parent.parent / "weights" / BUILTIN[name]
    elif name.endswith(".safetensors") or os.sep in name:
        path = Path(name).expanduser().resolve()
        name = str(path)
    else:
        raise UsageError(
            f"no model is called {name!r}",
            hint=f"one of {', '.join(BUILTIN)}, torchvision/<name>, or the path of a .safetensors file",
        )
    if not path.is_file():
        raise UsageError(f"no weights file at {path}")
    return WeightsFile(name, path, read_card(path), sha256(path))


def precision_of(engine: str) -> str:
    """What an engine computes in, by its name: one of `PRECISIONS`."""
    return "int8" if engine.endswith("-int8") else "float32"


def sha256_before_ranges(name: str) -> str | None:
    """The SHA-256 that a weights file had before its ranges were added; None for what is no weights file."""
    try:
        return sha256_without_ranges(find(name).path)
    except (UsageError, WeightsError):
        return None


def same_weights(name: str, first: str, second: str) -> bool:
    """Whether two SHA-256 are of the same weights, of which one may be from before the ranges of `name` were added."""
    if first == second:
        return True
    before = sha256_before_ranges(name)
    return before is not None and {first, second} == {find(name).sha256, before}


def load(
    name: str = DEFAULT, device: str = "auto", *,
    images: int | None = None, threads: bool = False, precision: str = "float32",
) -> Model:  # fmt: skip
    """Loads a model by name, ready to compute.

    device: "auto", "cpu", "cuda" or "cuda:N". "auto" takes a GPU if there is one and the work is worth its start-up.
    images: how many are expected, if known; a handful is done sooner without preparing for many. threads: several
    threads will compute at once, so on the CPU each takes no more than its share of the cores. precision: "float32",
    "int8" (on the CPU, if the weights allow it), or "auto": see `precision.choose`.
    """
    from simsearch.models import runtime
    from simsearch.models.precision import choose

    few = images is not None and images <= FEW
    if precision == "int8":
        if device.startswith("cuda"):
            raise DeviceError(f"int8 runs on the CPU, not on {device}", hint="--device cpu")
        device = "cpu"
    chosen = runtime.choose_device(device, few)
    if name.startswith(TORCHVISION) and not name.endswith(".safetensors"):
        from simsearch.models.torchvision_models import TorchvisionModel

        found = _on_gpu(lambda: TorchvisionModel(name, chosen), device) if chosen != "cpu" else None
        return found or TorchvisionModel(name, "cpu")
    weights = find(name)
    if chosen != "cpu":
        from simsearch.models.torch_runtime import TorchModel

        if (found := _on_gpu(lambda: TorchModel(weights, chosen), device)) is not None:
            return found
    precision = choose(weights) if precision == "auto" else precision
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
