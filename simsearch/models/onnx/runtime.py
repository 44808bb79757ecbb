"""Runs networks with ONNX Runtime on the CPU, and chooses the device.

ONNX Runtime starts in a fraction of a second, whereas importing torch takes seconds.

Shape letters: B images in a batch, S side of the network's input, D dimension of the features, C classes or channels.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.common import cache, fork, machine
from simsearch.common.atomic_files import delete_abandoned, replacing
from simsearch.errors import DeviceError, UsageError, WeightsError
from simsearch.models import registry
from simsearch.models.onnx import graphs, int8
from simsearch.models.onnx.session import open_session
from simsearch.models.precision import CALIBRATE, can_quantize
from simsearch.models.safetensors_header import locate_tensors
from simsearch.models.weights import read_tensors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.models.registry import WeightsFile

log = logging.getLogger(__name__)

LAYERS: dict[str, tuple[str, ...]] = {"alexnet": ("features", "fc6", "conv5")}
"""For each architecture, the layers that its network can output; other architectures output "features" only."""

MAX_LANES = 8
"""Largest number of threads that compute at once; each needs memory for the activations of a batch."""

_BUILDERS: dict[str, Any] = {"alexnet": graphs.alexnet, "lenet5": graphs.lenet5, "convnet4": graphs.convnet4}

_DISABLED_OPTIMIZERS = ["QDQPropagationTransformer", "QDQSelectorActionTransformer"]
"""Optimisations of ONNX Runtime that are switched off.

With them, pooling layers run in 8 bits and take longer than the convolutions.
"""


def choose_device(device: str, few: bool = False) -> str:
    """Returns the device to compute on: "cpu", "cuda" or "cuda:N".

    device: one of these, or "auto". "auto" chooses a GPU if there is one and `few` is False, otherwise the CPU.
    few: True if only a few images will be computed.
    Raises DeviceError if the device does not exist. torch is imported only if a GPU was requested or a GPU's driver is
    present.
    """
    if device == "cpu":
        return "cpu"
    if device == "auto":
        if few or not Path("/dev/nvidiactl").exists():
            return "cpu"
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    registry.check_device(device)
    import torch

    if not torch.cuda.is_available():
        raise DeviceError(f"device {device!r}: there is no usable GPU", hint='device="cpu"', shell_hint="--device cpu")
    number = device.partition(":")[2]
    if number and int(number) >= torch.cuda.device_count():
        raise DeviceError(f"device {device!r}: there are {torch.cuda.device_count()} GPUs, numbered from 0")
    return device


class WeightsBackedModel:
    """The base class of models from a weights file, with the properties that the file determines.

    Raises WeightsError if the recipe does not make images of the size that the network takes.
    """

    def __init__(self, weights: WeightsFile) -> None:
        self.name, self.weights_sha256 = weights.name, weights.sha256
        self.recipe, self.classes = weights.card.recipe, weights.card.classes
        self.distances, self.labels = weights.card.distances, weights.card.labels
        config = weights.config
        self.dimension = config.dimension
        self.layers = LAYERS.get(weights.card.architecture, ("features",))
        if self.recipe.crop != config.image_size:
            raise WeightsError(f"the recipe crops to {self.recipe.crop} pixels, the network takes {config.image_size}")

    def check_outputs(self, names: Sequence[str]) -> None:
        """Raises UsageError if the network cannot output one of the layers in `names`."""
        for name in names:
            if name not in self.layers:
                hint = f"it has {', '.join(self.layers)}"
                raise UsageError(f"the network of {self.name} has no layer {name!r}", hint=hint)


class OnnxModel(WeightsBackedModel):
    """A network in ONNX Runtime on the CPU, in float32, or in int8 if the weights file has the ranges of activations.

    The weights of each file are decompressed once and stored in the cache, from where ONNX Runtime maps them into
    memory. Thread-safe.

    few: True to start faster but compute more slowly, because the weights are not rearranged.
    threads: True if several threads will call the model at once; each then uses a part of the cores. This does not
    change the features, not even in the last bit.
    lanes: the number of threads that should call the model at once; 1 if `threads` is False.
    precision: "float32" or "int8". folder: where to store the decompressed weights instead of in the cache.
    Raises UsageError if the weights have no ranges for int8, and WeightsError if they cannot be used.
    """

    def __init__(
        self,
        weights: WeightsFile,
        *,
        few: bool = False,
        threads: bool = False,
        precision: str = "float32",
        folder: Path | None = None,
    ) -> None:
        if precision == "int8" and not can_quantize(weights):
            raise UsageError(f"{weights.name} cannot run in int8: it has no ranges of activations", hint=CALIBRATE)
        self.precision = precision
        self.engine = "onnxruntime-cpu" + ("-int8" if precision == "int8" else "")
        super().__init__(weights)
        self._weights, self.few, self._folder = weights, few, folder
        self._widths = {"features": self.dimension, "logits": weights.config.num_classes}
        self.lanes = min(machine.available_cores(), MAX_LANES) if threads else 1
        self._session: Any = None
        self._lock = threading.Lock()
        fork.in_child(self._leave_session)

    def _leave_session(self) -> None:
        """Drops the session in a forked process, which lacks the session's threads. A new one is opened when needed."""
        fork.never_close(self._session)
        self._session, self._lock = None, threading.Lock()

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the features (B, D) float32: the last hidden layer after its activation.

        pixels: (B, S, S, 3) uint8.
        """
        return self._run(["features"], pixels)[0]

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the logits (B, C) float32 of pixels (B, S, S, 3) uint8."""
        return self._run(["logits"], pixels)[0]

    def outputs(self, names: Sequence[str], pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Returns the outputs of several layers after their ReLU: float32 arrays in the order of `names`.

        names: "features" and "fc6" give arrays (B, D), "conv5" gives (B, C, H, W). pixels: (B, S, S, 3) uint8.
        Raises UsageError if the network cannot output one of the layers in `names`.
        """
        self.check_outputs(names)
        return self._run(names, pixels)

    def _run(self, names: Sequence[str], pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        given = pixels if len(pixels) else np.zeros((1, self.recipe.crop, self.recipe.crop, 3), np.uint8)
        found: list[NDArray[np.float32]] = self._started().run(names, {"pixels": given})
        for name, rows in zip(names, found, strict=True):
            if rows.shape[1] != (width := self._widths.get(name, rows.shape[1])):
                raise WeightsError(
                    f"{self.name}: the header says {width:,} {name} per image, but the network gives {rows.shape[1]:,}"
                )
        return [rows[: len(pixels)] for rows in found]

    def _started(self) -> Any:
        with self._lock:
            if self._session is None:
                self._session = self._open()
            return self._session

    def _open(self) -> Any:
        version = f"v{graphs.VERSION}"
        if self.precision == "int8":
            version = f"int8-v{int8.VERSION}"
        with _decompressing(self.name):
            folder = self._folder or cache.cached_folder(f"{self.weights_sha256[:32]}-{version}", self._write_cache)
        for attempt in (1, 2):
            try:
                if not self.few and _checksum(folder / "dense.safetensors") != (folder / "dense.crc32").read_text():
                    raise OSError("the cached weights have changed")
                return open_session(
                    folder / "network.onnx",
                    few=self.few,
                    lanes=self.lanes,
                    quantized=self.precision == "int8",
                    disabled=_DISABLED_OPTIMIZERS,
                )
            except Exception as error:  # onnxruntime raises its own classes, and RuntimeError for missing files
                if attempt == 2:
                    raise WeightsError(f"{self.name}: ONNX Runtime cannot open the network: {error}") from error
                with _decompressing(self.name):
                    folder.mkdir(exist_ok=True)
                    self._write_cache(folder)  # the cache is damaged
        raise AssertionError("unreachable")

    def _write_cache(self, folder: Path) -> None:
        """Writes the decompressed weights, their checksum, and the graph that uses them into a folder."""
        import safetensors.numpy

        arithmetic = " for int8" if self.precision == "int8" else ""
        log.info("unpacking the weights of %s%s into the cache, once", self.name, arithmetic)
        dense, card = folder / "dense.safetensors", self._weights.card
        delete_abandoned(folder)
        tensors: dict[str, Any] = dict(read_tensors(self._weights.path))
        try:
            build = _BUILDERS[card.architecture]
            if self.precision == "int8":
                config: Any = self._weights.config
                quantized = int8.quantize(config, tensors, card.ranges)
                tensors = int8.arrays(tensors, quantized)
                build = functools.partial(int8.alexnet, quantized=quantized)
            with replacing(dense) as file:
                try:
                    safetensors.numpy.save_file(tensors, file.name)
                except safetensors.SafetensorError as error:  # a full disk, for example
                    raise OSError(str(error)) from error
                checksum = _checksum(Path(file.name))
            model = build(self._weights.config, self.recipe, locate_tensors(dense), dense.name)
        except KeyError as error:
            raise WeightsError(f"{self._weights.path}: tensor {error} is missing") from error
        except (ValueError, TypeError, IndexError, AttributeError, ArithmeticError) as error:
            raise WeightsError(f"{self._weights.path}: the tensors do not fit the network: {error}") from error
        for name, data in (("network.onnx", model), ("dense.crc32", checksum.encode())):
            with replacing(folder / name) as file:
                file.write(data)


@contextlib.contextmanager
def _decompressing(name: str) -> Iterator[None]:
    """A context that turns an OSError into a WeightsError, while the decompressed weights of a model are written."""
    try:
        yield
    except OSError as error:
        hint = "set $SIMSEARCH_CACHE to a folder with enough free space"
        raise WeightsError(f"the weights of {name} cannot be unpacked: {error.strerror or error}", hint=hint) from error


def _checksum(path: Path) -> str:
    """Returns the CRC-32 of a file, in hexadecimal."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            value = zlib.crc32(block, value)
    return f"{value:08x}"
