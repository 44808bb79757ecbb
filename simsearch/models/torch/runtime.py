"""Runs networks in torch: all of them on a GPU, and those without an ONNX graph on the CPU.

For a GPU, pixels are uploaded from pinned memory as bytes and normalised on the GPU. There, features are computed in
float16, with sums in float32, if they agree with features in float32. The computation for input shapes that occur
repeatedly is recorded and replayed (`simsearch.models.torch.cuda_graphs`).

Shape letters: B images in a batch, S side of the network's input, D dimension of the features, C classes.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import queue
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn

from simsearch.errors import DeviceError, WeightsError
from simsearch.models.networks.build import build_network
from simsearch.models.onnx.runtime import WeightsBackedModel
from simsearch.models.torch import jpeg_decoder
from simsearch.models.torch.cuda_graphs import CudaGraphCache, empty_cache
from simsearch.models.torch.precision import full_precision as full_precision
from simsearch.models.trial import lowest_cosine, trial_pixels
from simsearch.models.weights import read_tensors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.images.preprocessing import Preprocessing
    from simsearch.models.registry import WeightsFile

    Function = Callable[[torch.Tensor], torch.Tensor]

AGREEMENT = 0.9995
"""Float16 is used if the cosine between features in float16 and in float32 is at least this."""


class TorchModel(WeightsBackedModel):
    """The model of a weights file, computed by torch.

    engine: "torch-cpu", "torch-cuda", or "torch-cuda-float16" if features are computed in float16. Logits and other
    layers are always computed in float32.
    decoder: decodes JPEGs on the GPU; None if the device cannot decode them.
    Raises WeightsError if the weights do not fit the network.
    """

    def __init__(self, weights: WeightsFile, device: str) -> None:
        super().__init__(weights)
        self.runner = TorchRunner(self.recipe, device)
        self.lanes = self.runner.lanes
        network = build_network(weights.card.architecture, weights.config)
        tensors = {name: torch.from_numpy(array) for name, array in read_tensors(weights.path).items()}
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            raise WeightsError(f"{weights.path}: {error}") from error
        self.network = self.runner.prepare(network)
        self._fastest, self.engine = self.runner.fastest(self.network, lambda network: network.features)
        self._layers = functools.cache(lambda names: _Layers(self.network, names))
        self.decoder = self.runner.decoder()

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the features (B, D) float32: the last hidden layer after its activation.

        pixels: (B, S, S, 3) uint8.
        """
        return self.runner.run(self._fastest.features, pixels)

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns the logits (B, C) float32 of pixels (B, S, S, 3) uint8."""
        return self.runner.run(self.network, pixels)

    def outputs(self, names: Sequence[str], pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Computes several layers at once; the arguments and the result are those of `OnnxModel.outputs`."""
        self.check_outputs(names)
        layers = self._layers(tuple(names))
        rows = self.runner.run(layers, pixels)
        ends = np.cumsum([shape.numel() for shape in layers.shapes])
        parts = np.split(rows, ends[:-1], axis=1)
        return [part.reshape(-1, *shape) for part, shape in zip(parts, layers.shapes, strict=True)]


class _Layers:
    """A function that computes several layers of a network and joins them into one row per image.

    shapes: the shapes of the layers in the last call, without the dimension of the batch.
    """

    def __init__(self, network: Any, names: tuple[str, ...]) -> None:
        self.network, self.names, self.shapes = network, names, list[torch.Size]()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        outputs = self.network.activations(x)
        self.shapes = [outputs[name].shape[1:] for name in self.names]
        return torch.cat([outputs[name].flatten(1) for name in self.names], 1)


class _Lane(NamedTuple):
    """A CUDA stream and the CUDA graphs recorded on it."""

    stream: torch.cuda.Stream
    graphs: CudaGraphCache


class TorchRunner:
    """Runs torch networks on one device. Thread-safe.

    On a GPU there are two lanes, each with a CUDA stream. One thread at a time uses a lane, so that one lane can upload
    pixels while the other computes. On the CPU there is one lane, without a stream. If a batch does not fit into the
    GPU's memory, it and all later batches are divided into smaller batches.

    recipe: the preprocessing, whose mean and std normalise pixels.
    lanes: the number of lanes, which is the number of threads that should compute at once.
    max_batch: the largest number of images in a batch; None as long as every batch has fitted into the memory.
    """

    def __init__(self, recipe: Preprocessing, device: str) -> None:
        if device == "cuda":  # without a number it means the current GPU of each thread
            device = f"cuda:{torch.cuda.current_device()}"
        self.recipe, self.device = recipe, torch.device(device)
        self.lanes = 2 if self.device.type == "cuda" else 1
        self.max_batch: int | None = None
        self._free: queue.SimpleQueue[_Lane] | None = None
        self._mean = torch.tensor(recipe.mean, device=self.device)
        self._std = torch.tensor(recipe.std, device=self.device)
        if self.device.type == "cuda":
            self._free = queue.SimpleQueue()
            for _ in range(self.lanes):
                self._free.put(_Lane(torch.cuda.Stream(self.device), CudaGraphCache()))  # type: ignore[no-untyped-call]

    def prepare(self, network: nn.Module) -> Any:
        """Returns the network in evaluation mode on the device.

        On a GPU its memory format is channels last, which is faster there.
        """
        network = network.eval().to(self.device)
        return network.to(memory_format=torch.channels_last) if self.device.type == "cuda" else network

    def fastest(self, network: Any, features: Callable[[Any], Function]) -> tuple[Any, str]:
        """Returns the network that should compute features, and the name of the engine.

        On the CPU, this is the given network. On a GPU, it is a float16 copy of the given network, if possible. The
        copy is not used if its features differ from those of the given network by more than AGREEMENT permits, if it
        cannot be made or run, or if $SIMSEARCH_PRECISION is float32.
        features: takes a network and returns the function that computes its features.
        """
        name = f"torch-{self.device.type}"
        if self.device.type == "cuda" and os.environ.get("SIMSEARCH_PRECISION") != "float32":
            # The errors mean that a layer has no float16, or that the memory does not hold a copy of the network.
            with contextlib.suppress(RuntimeError, DeviceError):
                half = copy.deepcopy(network).half()
                if self.agreement(features(network), features(half)) >= AGREEMENT:
                    return half, f"{name}-float16"
            self.max_batch = None  # more images fit now that the copy is not kept
        return network, name

    def agreement(self, first: Function, second: Function) -> float:
        """Returns the lowest cosine between the features that two functions compute for `trial_pixels`."""
        pixels = trial_pixels(self.recipe.crop)
        return lowest_cosine(self.run(first, pixels), self.run(second, pixels))

    def decoder(self) -> jpeg_decoder.JpegDecoder | None:
        """Returns the JPEG decoder of the device; None if the device cannot decode JPEGs."""
        return jpeg_decoder.JpegDecoder.on(self.recipe, self.device, self._lane)

    def run(self, function: Function, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Normalises pixels (B, S, S, 3) uint8, calls a function with them, and returns its result: (B, D) float32.

        function: takes (B, 3, S, S) in the dtype of its network, and returns (B, ...), which is flattened to (B, D).
        Raises DeviceError if the device does not have enough memory for a single image.
        """
        parts: list[NDArray[np.float32]] = []
        start = 0
        while start < len(pixels) or not parts:
            part = pixels[start : start + self.max_batch] if self.max_batch else pixels[start:]
            try:
                parts.append(self._once(function, part))
                start += len(part)
                continue
            except torch.OutOfMemoryError as error:
                if len(part) <= 1:
                    raise DeviceError(
                        f"{self.device}: not enough memory for a single image",
                        hint='device="cpu"',
                        shell_hint="--device cpu",
                    ) from error
            self.max_batch = len(part) // 2
            empty_cache()
        return np.concatenate(parts)

    def _once(self, function: Function, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode(), full_precision(self.device), self._lane() as lane:
            x = torch.from_numpy(np.ascontiguousarray(pixels))
            step = functools.partial(self._step, function)
            if lane is not None:
                y = lane.graphs.run(function, step, x.pin_memory(), self.device)
            else:
                y = step(x.to(self.device))
            result: NDArray[np.float32] = y.cpu().numpy()
        return result

    def _step(self, function: Function, x: torch.Tensor) -> torch.Tensor:
        """Does the work of `run` for one batch on the device: takes (B, S, S, 3) uint8, returns (B, D) float32."""
        x = ((x.float() - self._mean) / self._std).permute(0, 3, 1, 2)  # (B, 3, S, S), channels last
        return function(x.to(_dtype(function))).flatten(1).float()

    @contextlib.contextmanager
    def _lane(self) -> Iterator[_Lane | None]:
        """A context that reserves one of the lanes for this thread and yields it; on the CPU, it yields None."""
        if self._free is None:
            yield None
            return
        lane = self._free.get()
        try:
            lane.stream.wait_stream(torch.cuda.default_stream(self.device))  # it uploads the weights
            with torch.cuda.stream(lane.stream):
                yield lane
        finally:
            self._free.put(lane)


def _dtype(function: Any) -> torch.dtype:
    """Returns the dtype of a network's weights.

    function: the network, one of its methods, or `_Layers` of it. For other functions, returns float32.
    """
    network = getattr(function, "__self__", getattr(function, "network", function))
    first = next(iter(network.parameters()), None) if isinstance(network, nn.Module) else None
    return torch.float32 if first is None else first.dtype
