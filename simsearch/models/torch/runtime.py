"""Running a network in torch: on a GPU, and what ONNX Runtime has no graph of on the CPU.

On a GPU bytes are uploaded from pinned memory, and mean and deviation are applied there; features are computed in
float16, whose products are added up in float32, if that gives the same features as float32; repeated shapes are
replayed (`simsearch.models.torch.cuda_graphs`).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import queue
import threading
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
from simsearch.models.weights import read_tensors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simsearch.images.preprocessing import Preprocessing
    from simsearch.models.registry import WeightsFile

    Function = Callable[[torch.Tensor], torch.Tensor]

AGREEMENT = 0.9995
"""Least cosine of features in float16 with those in float32 for which float16 is used."""


class TorchModel(WeightsBackedModel):
    """The network of a weights file in torch.

    engine: "torch-cpu", "torch-cuda", or "torch-cuda-float16" where features are computed in half precision; logits and
    other layers are always float32. decoder: of JPEGs on the GPU; None where there is none.
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
        self.network = self.runner.placed(network)
        self._fast, self.engine = self.runner.fastest(self.network, lambda network: network.features)
        self._layers = functools.cache(lambda names: _Layers(self.network, names))
        self.decoder = self.runner.decoder()

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, S, S, 3) uint8 -> (B, D) float32, the last hidden layer after its ReLU."""
        return self.runner.run(self._fast.features, pixels)

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, S, S, 3) uint8 -> (B, C) float32."""
        return self.runner.run(self.network, pixels)

    def outputs(self, names: Sequence[str], pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Several layers, as `OnnxModel.outputs`."""
        self.check_outputs(names)
        layers = self._layers(tuple(names))
        rows = self.runner.run(layers, pixels)
        ends = np.cumsum([shape.numel() for shape in layers.shapes])
        parts = np.split(rows, ends[:-1], axis=1)
        return [part.reshape(-1, *shape) for part, shape in zip(parts, layers.shapes, strict=True)]


class _Layers:
    """A function that gives several layers of a network side by side in one row, whose shapes it notes."""

    def __init__(self, network: Any, names: tuple[str, ...]) -> None:
        self.network, self.names, self.shapes = network, names, list[torch.Size]()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        found = self.network.activations(x)
        self.shapes = [found[name].shape[1:] for name in self.names]
        return torch.cat([found[name].flatten(1) for name in self.names], 1)


class _Lane(NamedTuple):
    """A stream, and what was recorded on it."""

    stream: torch.cuda.Stream
    replays: CudaGraphCache


class TorchRunner:
    """Sends pixels through torch networks on one device; safe for several threads.

    On a GPU there are two streams, each lent to one thread at a time, so that one uploads while the other computes. A
    batch that the GPU's memory does not hold is halved until it does, and later ones with it. Raises DeviceError where
    not even one image fits.
    """

    def __init__(self, recipe: Preprocessing, device: str) -> None:
        if device == "cuda":  # which would be each thread's own
            device = f"cuda:{torch.cuda.current_device()}"
        self.recipe, self.device = recipe, torch.device(device)
        self.lanes = 2 if self.device.type == "cuda" else 1
        self.most: int | None = None
        self._free: queue.SimpleQueue[_Lane] | None = None
        self._mean = torch.tensor(recipe.mean, device=self.device)
        self._deviation = torch.tensor(recipe.deviation, device=self.device)
        if self.device.type == "cuda":
            self._free = queue.SimpleQueue()
            for _ in range(self.lanes):
                self._free.put(_Lane(torch.cuda.Stream(self.device), CudaGraphCache()))  # type: ignore[no-untyped-call]

    def placed(self, network: nn.Module) -> Any:
        """The network ready to be run: on the device, with its channels last where that is faster."""
        network = network.eval().to(self.device)
        return network.to(memory_format=torch.channels_last) if self.device.type == "cuda" else network

    def fastest(self, network: Any, features: Callable[[Any], Function]) -> tuple[Any, str]:
        """What to compute features with, and the engine's name: on a GPU, the network in float16 if that is as good.

        features: from a network to the function that is to be run. $SIMSEARCH_PRECISION=float32 prevents it.
        """
        name = f"torch-{self.device.type}"
        if self.device.type == "cuda" and os.environ.get("SIMSEARCH_PRECISION") != "float32":
            # layers that do not know float16; no memory for a second copy, or for one picture beside it
            with contextlib.suppress(RuntimeError, DeviceError):
                half = copy.deepcopy(network).half()
                if self.agreement(features(network), features(half)) >= AGREEMENT:
                    return half, f"{name}-float16"
            self.most = None  # what did not fit beside that copy may fit now
        return network, name

    def agreement(self, first: Function, second: Function) -> float:
        """The least cosine between the features that two functions find in seven drawn pictures; 0 if one finds none.

        One is grey; the others are random squares, ever smaller, down to single pixels.
        """
        random, side = np.random.default_rng(0), self.recipe.crop
        pictures = [np.full((side, side, 3), 128, np.uint8)]
        for cells in (1, 2, 4, 8, 16, side):
            drawn, size = random.integers(0, 256, (cells, cells, 3), np.uint8), -(-side // cells)
            pictures.append(drawn.repeat(size, 0).repeat(size, 1)[:side, :side])
        pixels = np.stack(pictures)
        a, b = (self.run(function, pixels).astype(np.float64) for function in (first, second))
        some = a.any(1) | b.any(1)  # grey may have no features either way
        a, b = a[some], b[some]
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        if not (np.isfinite(a).all() and np.isfinite(b).all() and (lengths > 0).all() and len(a)):
            return 0.0
        return float((np.einsum("nd,nd->n", a, b) / lengths).min())

    def decoder(self) -> jpeg_decoder.JpegDecoder | None:
        """What decodes JPEGs on the device, and scales and crops them there; None where nothing does."""
        return jpeg_decoder.JpegDecoder.on(self.recipe, self.device, self._lane)

    def run(self, function: Function, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, S, S, 3) uint8 through `function`, which takes (B, 3, S, S): (B, D) float32.

        What the function is given is float16 if it is a method of a network in float16, or that network.
        """
        parts: list[NDArray[np.float32]] = []
        start = 0
        while start < len(pixels) or not parts:
            part = pixels[start : start + self.most] if self.most else pixels[start:]
            try:
                parts.append(self._once(function, part))
                start += len(part)
                continue
            except torch.OutOfMemoryError as error:
                if len(part) <= 1:
                    raise DeviceError(
                        f"{self.device}: its memory does not hold one image", hint="--device cpu"
                    ) from error
            self.most = len(part) // 2
            empty_cache()
        return np.concatenate(parts)

    def _once(self, function: Function, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.inference_mode(), full_precision(self.device), self._lane() as lane:
            x = torch.from_numpy(np.ascontiguousarray(pixels))
            step = functools.partial(self._step, function)
            if lane is not None:
                y = lane.replays.run(function, step, x.pin_memory(), self.device)
            else:
                y = step(x.to(self.device))
            result: NDArray[np.float32] = y.cpu().numpy()
        return result

    def _step(self, function: Function, x: torch.Tensor) -> torch.Tensor:
        """(B, S, S, 3) uint8 to (B, D) float32, both on the device."""
        x = ((x.float() - self._mean) / self._deviation).permute(0, 3, 1, 2)  # (B, 3, S, S), channels last
        return function(x.to(_dtype(function))).flatten(1).float()

    @contextlib.contextmanager
    def _lane(self) -> Iterator[_Lane | None]:
        """One of a GPU's streams and its recordings, for this thread alone."""
        if self._free is None:
            yield None
            return
        lane = self._free.get()
        try:
            lane.stream.wait_stream(torch.cuda.default_stream(self.device))  # on which weights are uploaded
            with torch.cuda.stream(lane.stream):
                yield lane
        finally:
            self._free.put(lane)


def _dtype(function: Any) -> torch.dtype:
    """What a network, a method of one, or layers of one compute in."""
    network = getattr(function, "__self__", getattr(function, "network", function))
    first = next(iter(network.parameters()), None) if isinstance(network, nn.Module) else None
    return torch.float32 if first is None else first.dtype


class _Together:
    """A context that threads share: the first to come enters it, and the last to go leaves it."""

    def __init__(self, make: Callable[[], contextlib.AbstractContextManager[Any]]) -> None:
        self._make, self._lock, self._inside = make, threading.Lock(), 0
        self._context: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                self._context = self._make()
                self._context.__enter__()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._context.__exit__(None, None, None)


@contextlib.contextmanager
def _ieee() -> Iterator[None]:
    """float32 without TF32, by whichever of torch's two interfaces the program around uses: they must not be mixed.

    What is so already is not touched.
    """
    backends: Any = torch.backends
    matmul, cudnn = backends.cuda.matmul, backends.cudnn
    precision = _products()
    settings: list[tuple[Any, str, Any]] = [(matmul, "allow_fp16_reduced_precision_reduction", False)]
    if precision is not None and _older():
        settings.append((cudnn, "allow_tf32", False))
    else:
        settings += [(place, "fp32_precision", "ieee") for place in (matmul, cudnn.conv, cudnn.rnn)]
    with contextlib.ExitStack() as back:
        if precision not in {None, "highest"}:  # by the older interface, which must not contradict the newer one
            back.callback(torch.set_float32_matmul_precision, precision)
            torch.set_float32_matmul_precision("highest")
        for place, name, value in settings:
            if (before := getattr(place, name)) != value:
                back.callback(setattr, place, name, before)
                setattr(place, name, value)
        yield


def _products() -> str | None:
    """What the older interface says of products of matrices; None where it has no answer any more."""
    with contextlib.suppress(RuntimeError):
        return torch.get_float32_matmul_precision()
    return None


def _older() -> bool:
    """Whether convolutions are as the older interface has set them, if at all."""
    backends: Any = torch.backends
    with contextlib.suppress(RuntimeError):  # for that setting has no answer any more
        general = {backends.fp32_precision, backends.cudnn.fp32_precision}
        return general == {"none"} and backends.cudnn.allow_tf32 is not None
    return False


_full = _Together(_ieee)


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Keeps float32 from being rounded to TF32, whose 10-bit mantissa would not agree with the CPU's features.

    And sums of products in float16 from being rounded on the way. The settings are the process's: they are put back
    when no thread computes any more.
    """
    return _full() if device.type == "cuda" else contextlib.nullcontext()
