"""The model registry: finds the weights file that a name stands for.

A name is one of these:

- a name in `BUILTIN`;
- `torchvision/<name>`, for a network of torchvision with its official weights;
- the path of a `.safetensors` file that simsearch wrote;
- the path of an `.onnx` file.

Importing this module imports neither torch nor ONNX Runtime.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simsearch.errors import DeviceError, UsageError, WeightsError
from simsearch.models.networks.configs import AlexNetConfig, Config, ConvNet4Config, LeNet5Config, check_config
from simsearch.models.weights import ModelCard, largest_network, read_card, sha256, sha256_without_ranges

DEFAULT = "alexnet"

TORCHVISION = "torchvision/"
"""Prefix of the names of torchvision's networks."""

ONNX = ".onnx"
"""Suffix of the names of networks that are ONNX files."""

FEW = 32
"""For up to this many images, starting CUDA or rearranging the weights takes longer than it saves."""

PRECISIONS = ("float32", "int8")
"""Precisions in which features can be computed."""

BUILTIN: dict[str, str] = {
    "alexnet": "alexnet.safetensors",
}
"""Names of the models in the package, and their files in `simsearch/models/weights_data/`."""

RENAMED: dict[str, str] = {
    "alexnet-distilled": "alexnet",
}
"""Former names of built-in models, which older indexes record, each with the present name."""

ARCHITECTURES: dict[str, Any] = {
    "alexnet": AlexNetConfig,
    "lenet5": LeNet5Config,
    "convnet4": ConvNet4Config,
}
"""Architectures that a weights file may name, and the configuration class of each."""


@dataclass(frozen=True)
class WeightsFile:
    """A weights file found by name.

    name: the name of the built-in model, or the file's path. card: the description of the model in the file's header.
    sha256: the SHA-256 of the file.
    """

    name: str
    path: Path
    card: ModelCard
    sha256: str

    @property
    def config(self) -> Config:
        """The network's configuration. Raises WeightsError if the header's architecture or arguments are invalid."""
        try:
            config: Config = ARCHITECTURES[self.card.architecture](**self.card.arguments)
        except KeyError:
            known = ", ".join(ARCHITECTURES)
            raise WeightsError(f"{self.path}: architecture {self.card.architecture!r} is not one of {known}") from None
        except TypeError as error:
            raise WeightsError(f"{self.path}: {error}") from error
        try:
            check_config(config, largest_network(self.path))
        except (TypeError, ValueError) as error:
            raise WeightsError(f"{self.path}: {error}") from error
        return config


def check_device(device: str) -> None:
    """Raises DeviceError if `device` is not the name of a device. The device itself need not exist."""
    if not isinstance(device, str) or not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", device):
        raise DeviceError(f"no device is called {device!r}", hint="auto, cpu, cuda or cuda:N")


def find_weights(name: str) -> WeightsFile:
    """Finds the weights file of a built-in model or at a path, and reads its header.

    Raises UsageError for an unknown name or a missing file, and WeightsError if simsearch did not write the file.
    """
    if name in BUILTIN:
        path = Path(__file__).parent / "weights_data" / BUILTIN[name]
    elif name in RENAMED:
        new = RENAMED[name]
        raise UsageError(f"the model {name} is called {new} now", hint=f'model="{new}"', shell_hint=f"--model {new}")
    elif name.endswith(".onnx"):
        raise UsageError(f"{name} is an ONNX file; a .safetensors file that simsearch wrote is needed")
    elif name.endswith(".safetensors") or os.sep in name:
        path = Path(name).expanduser().resolve()
        name = str(path)
    else:
        raise UsageError(
            f"no model is called {name!r}",
            hint=f"one of {', '.join(BUILTIN)}, torchvision/<name>, or the path of a .safetensors or .onnx file",
        )
    if not path.is_file():
        raise UsageError(f"no weights file at {path}")
    return WeightsFile(name, path, read_card(path), sha256(path))


def current_name(name: str) -> str:
    """Returns the present name of a model. name: the name that an index recorded, perhaps a former one."""
    return RENAMED.get(name, name)


def precision_of(engine: str) -> str:
    """Returns the precision in which an engine computes. engine: its name, such as "onnxruntime-cpu-int8"."""
    return "int8" if engine.endswith("-int8") else "float32"


def sha256_before_ranges(name: str) -> str | None:
    """Returns the SHA-256 of a model's weights file without the ranges for int8.

    This is the SHA-256 before the ranges were added, or the present one if the file has no ranges.
    Returns None if no weights file is found by this name, or if the file cannot be used.
    """
    try:
        return sha256_without_ranges(find_weights(current_name(name)).path)
    except (UsageError, WeightsError):
        return None


def same_weights(name: str, first: str, second: str) -> bool:
    """Returns true if two SHA-256 belong to the same weights of the model `name`.

    The SHA-256 of a weights file changes when the ranges for int8 are added to it, although its weights do not change.
    """
    if first == second:
        return True
    before = sha256_before_ranges(name)
    return before is not None and {first, second} == {find_weights(current_name(name)).sha256, before}
