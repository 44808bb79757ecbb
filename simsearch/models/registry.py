"""The model registry: names that stand for a network, its weights and its recipe.

A name is one of `BUILTIN`, or `torchvision/<name>` for a network and the official weights of torchvision, or the path
of a `.safetensors` file that simsearch wrote. Importing this module imports neither torch nor ONNX Runtime.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simsearch.errors import DeviceError, UsageError, WeightsError
from simsearch.models.networks.configs import AlexNetConfig, Config, ConvNet4Config, LeNet5Config
from simsearch.models.weights import ModelCard, read_card, sha256, sha256_without_ranges

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

"""Names of the weights inside the package, and their files under `simsearch/models/weights_data/`."""

ARCHITECTURES: dict[str, Any] = {
    "alexnet": AlexNetConfig,
    "lenet5": LeNet5Config,
    "convnet4": ConvNet4Config,
}

"""Networks that a weights file may name, and the configuration of each."""


@dataclass(frozen=True)
class WeightsFile:
    """A weights file found by name: where it is, what it says of itself, and its SHA-256."""

    name: str
    path: Path
    card: ModelCard
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


def find_weights(name: str) -> WeightsFile:
    """The weights file that `name` stands for (a built-in name or a path). Raises UsageError for anything else."""
    if name in BUILTIN:
        path = Path(__file__).parent / "weights_data" / BUILTIN[name]
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
        return sha256_without_ranges(find_weights(name).path)
    except (UsageError, WeightsError):
        return None


def same_weights(name: str, first: str, second: str) -> bool:
    """Whether two SHA-256 are of the same weights, of which one may be from before the ranges of `name` were added."""
    if first == second:
        return True
    before = sha256_before_ranges(name)
    return before is not None and {first, second} == {find_weights(name).sha256, before}
