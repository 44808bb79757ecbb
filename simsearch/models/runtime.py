"""Running a network: ONNX Runtime on the CPU, which starts in a fraction of a second, and torch on a GPU."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import struct
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch import cache, machine, models
from simsearch.errors import DeviceError, UsageError, WeightsError
from simsearch.models import graphs, quantised
from simsearch.models.precision import CALIBRATE, can_quantise, has_vnni
from simsearch.models.weights import read_tensors

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from simsearch.models import WeightsFile
    from simsearch.models.configs import Config
    from simsearch.recipe import Recipe

LAYERS: dict[str, tuple[str, ...]] = {"alexnet": ("features", "fc6", "conv5")}
"""What networks give out by name, besides their logits; the others have `features` alone."""

MOST_LANES = 8
"""Threads that compute at once; each holds the activations of a batch."""

_BUILDERS: dict[str, Any] = {"alexnet": graphs.alexnet, "lenet5": graphs.lenet5, "convnet4": graphs.convnet4}

_HARMFUL = ["QDQPropagationTransformer", "QDQSelectorActionTransformer"]
"""Optimisers of ONNX Runtime that move 8-bit values into the poolings, which then take longer than convolutions."""


def choose_device(device: str, few: bool = False) -> str:
    """Resolves "auto" and checks that the device exists: "cpu", "cuda" or "cuda:N".

    few: only a handful of images will be computed, for which "auto" does not wake a GPU.
    Raises DeviceError. torch is imported only if a GPU driver is present or was asked for.
    """
    if device == "cpu":
        return "cpu"
    if device == "auto":
        if few or not Path("/dev/nvidiactl").exists():
            return "cpu"
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    models.check_device(device)
    import torch

    if not torch.cuda.is_available():
        raise DeviceError(f"device {device!r}: there is no usable GPU", hint="--device cpu")
    number = device.partition(":")[2]
    if number and int(number) >= torch.cuda.device_count():
        raise DeviceError(f"device {device!r}: there are {torch.cuda.device_count()} GPUs, numbered from 0")
    return device


class OnnxModel:
    """A network on the CPU through ONNX Runtime, in float32 or, where the weights have ranges, in int8.

    The compressed weights are decoded once per weights file and kept dense in the cache, from where the runtime maps
    them, or in `folder`. Safe for several threads. `few` trades speed for a start without copying the weights. With
    `threads` as many as `lanes` should compute at once, each on its share of the cores; features are the same to the
    last bit.
    """

    def __init__(
        self, weights: WeightsFile, *,
        few: bool = False, threads: bool = False, precision: str = "float32", folder: Path | None = None,
    ) -> None:  # fmt: skip
        if precision == "int8" and not can_quantise(weights):
            raise UsageError(f"{weights.name} cannot run in int8: it has no ranges", hint=CALIBRATE)
        self.precision = precision
        self.engine = "onnxruntime-cpu" + ("-int8" if precision == "int8" else "")
        self.name, self.weights_sha256 = weights.name, weights.sha256
        self.recipe, self.classes = weights.card.recipe, weights.card.classes
        self.distances, self.labels = weights.card.distances, weights.card.labels
        config = weights.config
        self.dimension = config.dimension
        self.layers = LAYERS.get(weights.card.architecture, ("features",))
        _check_recipe(self.recipe, config)
        self._weights, self.few, self._folder = weights, few, folder
        self.lanes = min(machine.cores(), MOST_LANES) if threads else 1
        self._session: Any = None
        self._lock = threading.Lock()

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, S, S, 3) uint8 -> (B, D) float32, the last hidden layer after its ReLU."""
        return self._run("features", pixels)

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, S, S, 3) uint8 -> (B, C) float32."""
        return self._run("logits", pixels)

    def outputs(self, names: Sequence[str], pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Several layers at once, by name: "features", "fc6" (B, D), "conv5" (B, C, H, W), after their ReLU.

        Raises UsageError for a layer that the network does not give out.
        """
        _check_outputs(self, names)
        return [self._run(names[0], pixels)] if len(names) == 1 else self._started().run(names, {"pixels": pixels})

    def _run(self, output: str, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        session = self._started()
        if not len(pixels):
            return np.zeros((0, self.dimension), np.float32)
        result: NDArray[np.float32] = session.run([output], {"pixels": pixels})[0]
        return result

    def _started(self) -> Any:
        with self._lock:
            if self._session is None:
                self._session = self._open()
            return self._session

    def _open(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is reported below
        if self.few:
            options.add_session_config_entry("session.disable_prepacking", "1")
        if self.lanes > 1:
            options.intra_op_num_threads = machine.cores() // self.lanes
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        version = f"v{graphs.VERSION}"
        if self.precision == "int8":
            if not has_vnni():  # then sums could overflow in 16 bits; looking for that takes longer than the rest
                options.add_session_config_entry("session.x64quantprecision", "1")
            version = f"int8-v{quantised.VERSION}"
        folder = self._folder or cache.folder(f"{self.weights_sha256[:32]}-{version}", self._fill)
        for attempt in (1, 2):
            try:
                if not self.few and _checksum(folder / "dense.safetensors") != (folder / "dense.crc32").read_text():
                    raise OSError("the cached weights have changed")
                path = str(folder / "network.onnx")
                return onnxruntime.InferenceSession(
                    path, options, providers=["CPUExecutionProvider"], disabled_optimizers=_HARMFUL
                )
            except Exception as error:  # onnxruntime raises its own classes, and RuntimeError for missing files
                if attempt == 2:
                    raise WeightsError(f"{self.name}: ONNX Runtime cannot open the network: {error}") from error
                folder.mkdir(exist_ok=True)
                self._fill(folder)  # a cache that was cut short or tampered with
        raise AssertionError("unreachable")

    def _fill(self, folder: Path) -> None:
        """Writes the dense weights and the graph that refers to them."""
        import safetensors.numpy

        dense, card = folder / "dense.safetensors", self._weights.card
        partial = folder / ".dense.partial"
        tensors: dict[str, Any] = dict(read_tensors(self._weights.path))
        try:
            build = _BUILDERS[card.architecture]
            if self.precision == "int8":
                config: Any = self._weights.config
                half = quantised.quantise(config, tensors, card.ranges)
                tensors = quantised.arrays(tensors, half)
                build = functools.partial(quantised.alexnet, quantised=half)
            safetensors.numpy.save_file(tensors, partial)
            checksum = _checksum(partial)
            _sync(partial)
            partial.replace(dense)
            model = build(self._weights.config, self.recipe, _stored(dense), dense.name)
        except KeyError as error:
            raise WeightsError(f"{self._weights.path}: tensor {error} is missing") from error
        (folder / "network.onnx").write_bytes(model)
        (folder / "dense.crc32").write_text(checksum)
        for name in ("network.onnx", "dense.crc32"):
            _sync(folder / name)


def _stored(path: Path) -> graphs.Stored:
    """Where the tensors of a .safetensors file lie."""
    with path.open("rb") as file:
        start = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(start))
    stored = graphs.Stored()
    for name, facts in header.items():
        if name != "__metadata__":
            first, last = facts["data_offsets"]
            stored[name] = (tuple(facts["shape"]), 8 + start + first, last - first)
    return stored


class TorchModel:
    """The same network in torch, for CUDA; float32, so that its features agree with the CPU's."""

    def __init__(self, weights: WeightsFile, device: str) -> None:
        import torch

        from simsearch.models.networks import make

        self.name, self.weights_sha256 = weights.name, weights.sha256
        self.recipe, self.classes = weights.card.recipe, weights.card.classes
        self.distances, self.labels = weights.card.distances, weights.card.labels
        self.engine = f"torch-{device.partition(':')[0]}"
        config = weights.config
        self.dimension = config.dimension
        self.layers = LAYERS.get(weights.card.architecture, ("features",))
        _check_recipe(self.recipe, config)
        self._runner = TorchRunner(self.recipe, device)
        self.lanes = self._runner.lanes
        self._network = make(weights.card.architecture, config)
        tensors = {name: torch.from_numpy(array) for name, array in read_tensors(weights.path).items()}
        try:
            self._network.load_state_dict(tensors)
        except RuntimeError as error:
            raise WeightsError(f"{weights.path}: {error}") from error
        self._network.eval().to(self._runner.device)
        if self._runner.device.type == "cuda":
            self._network.to(memory_format=torch.channels_last)

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, S, S, 3) uint8 -> (B, D) float32, the last hidden layer after its ReLU."""
        return self._run(self._network.features, pixels)

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, S, S, 3) uint8 -> (B, C) float32."""
        return self._run(self._network, pixels)

    def outputs(self, names: Sequence[str], pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Several layers, as `OnnxModel.outputs`."""
        _check_outputs(self, names)
        shapes: list[Any] = []

        def joined(x: Any) -> Any:
            import torch

            found = self._network.activations(x)
            shapes[:] = [found[name].shape[1:] for name in names]
            return torch.cat([found[name].flatten(1) for name in names], 1)

        rows = self._run(joined, pixels)
        ends = np.cumsum([shape.numel() for shape in shapes])
        parts = np.split(rows, ends[:-1], axis=1)
        return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]

    def _run(self, function: Any, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._runner.run(function, pixels)


class TorchRunner:
    """Sends pixels through torch networks on one device; safe for several threads.

    On a GPU each thread has its own stream and uploads bytes from pinned memory, so that of two threads one uploads
    while the other computes; mean and deviation are applied there. A batch that the GPU's memory does not hold is
    halved until it does, and later ones with it. Raises DeviceError where not even one image fits.
    """

    def __init__(self, recipe: Recipe, device: str) -> None:
        import torch

        self.device = torch.device(device)
        self.lanes = 2 if self.device.type == "cuda" else 1
        self.most: int | None = None
        self._mean = torch.tensor(recipe.mean, device=self.device)
        self._deviation = torch.tensor(recipe.deviation, device=self.device)
        self._threads = threading.local()

    def run(self, function: Any, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, S, S, 3) uint8 through `function`, which takes (B, 3, S, S) float32: (B, D) float32."""
        import torch

        parts: list[NDArray[np.float32]] = []
        start = 0
        while start < len(pixels) or not parts:
            part = pixels[start : start + self.most] if self.most else pixels[start:]
            try:
                parts.append(self._once(function, part))
            except torch.OutOfMemoryError as error:
                if len(part) <= 1:
                    raise DeviceError(
                        f"{self.device}: its memory does not hold one image", hint="--device cpu"
                    ) from error
                self.most = len(part) // 2
                torch.cuda.empty_cache()
            else:
                start += len(part)
        return np.concatenate(parts)

    def _once(self, function: Any, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode(), full_precision(self.device), self._stream():
            x = torch.from_numpy(np.ascontiguousarray(pixels))
            if self.device.type == "cuda":
                x = x.pin_memory().to(self.device, non_blocking=True)
            x = ((x.float() - self._mean) / self._deviation).permute(0, 3, 1, 2)  # (B, 3, S, S), channels last
            result: NDArray[np.float32] = function(x).flatten(1).float().cpu().numpy()
        return result

    def _stream(self) -> Any:
        if self.device.type != "cuda":
            return contextlib.nullcontext()
        import torch

        if not hasattr(self._threads, "stream"):
            stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.default_stream(self.device))  # on which the weights were uploaded
            self._threads.stream = stream
        return torch.cuda.stream(self._threads.stream)


@contextlib.contextmanager
def full_precision(device: torch.device) -> Any:
    """Keeps cuDNN from rounding float32 to TF32, whose 10-bit mantissa would not agree with the CPU's features."""
    import torch

    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def _checksum(path: Path) -> str:
    """The CRC-32 of a file: before many images are computed, the cached weights are checked."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _check_outputs(model: OnnxModel | TorchModel, names: Sequence[str]) -> None:
    for name in names:
        if name not in model.layers:
            hint = f"it gives out {', '.join(model.layers)}"
            raise UsageError(f"the network of {model.name} has no layer {name!r}", hint=hint)


def _check_recipe(recipe: Recipe, config: Config) -> None:
    if recipe.crop != config.image_size:
        raise WeightsError(f"the recipe cuts {recipe.crop} pixels but the network takes {config.image_size}")
