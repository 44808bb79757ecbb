"""AlexNet in 8-bit integers, for ONNX Runtime on the CPU.

The first convolution, the normalisations and the classifier stay in float32. Elsewhere, an 8-bit integer n stands for
the value n * step. Weights are signed, and each output channel has its own step. Activations, which are never negative,
are unsigned, from 0 to the largest value on training images (`ranges`). They are quantized at certain points of the
network (`POINTS`). Sums are 32-bit and exact, so the features do not depend on the batch or on the number of threads.

At a point, all channels have the same step, although the values of some channels are ten times as large as those of
others. So each channel is divided by a factor of its own, and the weights that the next layer has for this channel are
multiplied by the factor (Nagel et al., ICCV 2019; Xiao et al., ICML 2023). The division takes no time, since it is part
of the conversion to 8 bits.

Shape letters: I input channels, O output channels and G groups of a layer, K positions of its kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from simsearch.errors import WeightsError
from simsearch.models.onnx import graphs
from simsearch.models.onnx.graphs import Locations

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from simsearch.images.preprocessing import Preprocessing
    from simsearch.models.networks.configs import AlexNetConfig

    Floats = NDArray[np.float32]

VERSION = 2
"""Part of the name of the cached graph; increase it whenever the graph or a number in it changes."""

POINTS = ("pool1", "relu2", "pool2", "relu3", "relu4", "relu5", "fc6")
"""The points of the network where activations are quantized.

A point is named after the operation before it, with the number of the layer in the paper: "pool1" is after the pooling
of the first convolution, "relu3" after the ReLU of the third. "fc6" is after the ReLU of the first hidden layer.
"""

FLOAT = ("conv.0.weight", "conv.0.bias", "classifier.weight", "classifier.bias")
"""The names of the tensors that stay in float32."""

_LAYERS = {
    "conv.4": ("pool1", True, "relu2"),
    "conv.8": ("pool2", False, "relu3"),
    "conv.10": ("relu3", True, "relu4"),
    "conv.12": ("relu4", True, "relu5"),
    "hidden.1": ("relu5", False, None),
    "hidden.4": ("fc6", False, None),
}
"""For each quantized layer: the point of its input, True if it has groups, and the point of its output.

If the output of a layer is float32, None stands in place of the second point.
"""

_MIGRATION = 0.75
"""Exponent of the activations in the factors of channels, from 0 to 1 (the "migration strength" of Xiao et al.).

The larger it is, the more similar are the largest activations of the channels after the division, and the less similar
are the largest weights.
"""

_BLOCK = 1 << 17
"""Number of weights processed at once, few enough for the cache of the processor."""


class Layer(NamedTuple):
    """A quantized layer.

    weight: int8, in the same shape as in float32. step: (O,) float32, the steps of the weights.
    bias: (O,) int32; its unit is the product of the weights' step and the input's step.
    """

    weight: NDArray[np.int8]
    step: Floats
    bias: NDArray[np.int32]


class Point(NamedTuple):
    """The quantization of activations at one point of the network (see `POINTS`).

    factor: (I,) float32, the divisor of each channel.
    step: the difference between two adjacent 8-bit values, after the division.
    """

    factor: Floats
    step: float


class QuantizedNetwork(NamedTuple):
    """A network in 8-bit integers.

    layers: maps the name of each quantized layer to the layer.
    points: maps each of `POINTS` to the quantization of the activations there.
    """

    layers: dict[str, Layer]
    points: dict[str, Point]


def quantize(config: AlexNetConfig, tensors: Mapping[str, Floats], ranges: Mapping[str, Floats]) -> QuantizedNetwork:
    """Quantizes the weights of a network, and chooses the quantization of its activations.

    tensors: maps the name of each parameter of the network to its float32 values.
    ranges: for each point, the largest activation of each channel on training images, (I,), or (1,) for fc6.
    Raises WeightsError if ranges are missing or do not fit the network.
    """
    if missing := [name for name in POINTS if name not in ranges]:
        raise WeightsError(f"the activation ranges of {missing[0]} are missing")
    channels = (*config.channels[:2], *config.channels[1:], 1)
    for point, count in zip(POINTS, channels, strict=True):
        if len(ranges[point]) != count:
            raise WeightsError(f"the point {point} has {count} channels, but there are {len(ranges[point])} ranges")
    layers, points = {}, {"relu2": _point(ranges["relu2"], None)}
    for name, (point, grouped, _) in _LAYERS.items():
        groups = config.groups if grouped else 1
        weight = tensors[f"{name}.weight"]
        inputs = weight.shape[1] if name == "hidden.4" else len(ranges[point])
        kernel = weight.reshape(groups, len(weight) // groups, inputs // groups, -1)  # (G, O / G, I / G, K)
        points[point] = _point(ranges[point], np.abs(kernel).max((1, 3)).reshape(-1))
        factor = np.broadcast_to(points[point].factor, inputs).reshape(groups, 1, -1, 1)
        flat = (kernel * factor).reshape(len(weight), -1)
        step = _steps(flat)
        rounded = np.clip(np.rint(flat / step[:, None]), -127, 127).astype(np.int8)
        bias = np.rint(tensors[f"{name}.bias"].astype(np.float64) / (step.astype(np.float64) * points[point].step))
        layers[name] = Layer(rounded.reshape(weight.shape), step, np.clip(bias, -(2**31), 2**31 - 1).astype(np.int32))
    return QuantizedNetwork(layers, points)


def _point(largest: Floats, weights: Floats | None) -> Point:
    """Returns factors and a step for the activations at one point.

    largest: (I,), the largest activation of each channel. weights: (I,), the largest weight of the next layer for each
    channel; None if the next layer is not quantized.
    """
    largest = np.maximum(largest, max(float(largest.max()) * 0.02, 1e-6))
    if len(largest) == 1:
        factor = np.ones(1, np.float32)
    elif weights is None:
        factor = largest / largest.max()
    else:
        weights = np.maximum(weights, max(float(weights.max()) * 0.02, 1e-6))
        factor = largest**_MIGRATION / weights ** (1 - _MIGRATION)
        factor = factor / factor.max()
    return Point(factor.astype(np.float32), float((largest / factor).max()) / 255)


def _steps(rows: Floats) -> Floats:
    """Returns the best step for each row of weights (O, n): (O,) float32.

    The best step gives the smallest squared error when the row is rounded to k * step, with a whole k from -127 to 127.
    """
    blocks = np.array_split(rows, min(len(rows), 1 + rows.size // _BLOCK))
    return np.concatenate([_steps_of(block) for block in blocks])


def _steps_of(rows: Floats) -> Floats:
    """Does the work of `_steps` for one block of rows: tries 13 steps for each row, from the largest step down."""
    largest = np.maximum(np.abs(rows).max(1), 1e-8)
    best, smallest = largest / 127, np.full(len(rows), np.inf)
    for fraction in np.linspace(1, 0.64, 13, dtype=np.float32):
        step = (largest * fraction / 127)[:, None]
        error = np.square(np.clip(np.rint(rows / step), -127, 127) * step - rows).sum(1)
        best, smallest = np.where(error < smallest, step[:, 0], best), np.minimum(error, smallest)
    steps: Floats = best.astype(np.float32)
    return steps


def arrays(tensors: Mapping[str, Floats], quantized: QuantizedNetwork) -> dict[str, NDArray[Any]]:
    """Returns the tensors, by name, that the weights file of the quantized network must have (see `alexnet`).

    The weights of quantized linear layers are transposed to (I, O).
    """
    kept: dict[str, NDArray[Any]] = {name: tensors[name] for name in FLOAT}
    for name, layer in quantized.layers.items():
        kept[f"{name}.weight"] = layer.weight if layer.weight.ndim == 4 else np.ascontiguousarray(layer.weight.T)
    return kept


def alexnet(
    config: AlexNetConfig, recipe: Preprocessing, locations: Locations, weights_file: str, quantized: QuantizedNetwork
) -> bytes:
    """Returns the content of an ONNX file with the quantized network. Its outputs are those of `graphs.alexnet`.

    locations: the places of the tensors in `weights_file`, which has the tensors that `arrays` returns.
    """
    build = _GraphBuilder(graphs.begin("alexnet-int8", recipe, locations, weights_file), config, quantized)
    side = (config.image_size + 2 * 2 - 11) // 4 + 1
    graphs.convolution(build.graph, 0, 11, 4, 2, 1)
    build.normalisation(config.channels[0], side)
    graphs.pooling(build.graph)
    build.quantize("pool1")
    build.convolution("conv.4", 5, 2)
    build.dequantize("relu2")
    build.normalisation(config.channels[1], (side - 3) // 2 + 1)
    graphs.pooling(build.graph)
    build.quantize("pool2")
    build.convolution("conv.8", 3, 1)
    build.convolution("conv.10", 3, 1)
    build.convolution("conv.12", 3, 1)
    build.dequantize("relu5", "conv5")
    graphs.pooling(build.graph)
    build.quantize("relu5")
    build.graph.add("Flatten", axis=1)
    build.linear("hidden.1", "fc6")
    build.quantize("fc6")
    build.linear("hidden.4", "features")
    graphs.classifier(build.graph)
    return build.graph.model(config.image_size, graphs.alexnet_outputs(config))


class _GraphBuilder:
    """Adds the layers of the quantized network to a graph."""

    def __init__(self, graph: graphs.Graph, config: AlexNetConfig, quantized: QuantizedNetwork) -> None:
        self.graph, self._config = graph, config
        self._layers, self._points = quantized.layers, quantized.points
        self._zero = graph.constant("nought", np.zeros((), np.uint8))

    def normalisation(self, channels: int, side: int) -> None:
        """Adds the normalisation of `graphs.normalisation`, computed by average pooling over channels.

        This is faster in the quantized network.
        channels: the number of channels of the input. side: its width and height.
        """
        graph = self.graph
        x, last = graph.last, f"{graph.last}.norm"
        graph.add("Mul", x)
        # Over two dimensions, with all positions in one, pooling of more than 2,048 positions is ten times as slow.
        graph.add("Reshape", graph.constant(f"{last}.maps", np.array([0, 1, channels, side, side], np.int64)))
        graph.add("AveragePool", kernel_shape=(5, 1, 1), pads=(2, 0, 0, 2, 0, 0), count_include_pad=1)
        graph.add("Mul", graph.constant(f"{last}.alpha", np.array(5e-4, np.float32)))
        graph.add("Add", graph.constant(f"{last}.k", np.array(2, np.float32)))
        graph.add("Sqrt")
        root = graph.last
        graph.add("Sqrt")
        graph.add("Mul", root)
        graph.add("Reshape", graph.constant(f"{last}.back", np.array([0, channels, side, side], np.int64)))
        scale, graph.last = graph.last, x
        graph.add("Div", scale)

    def quantize(self, point: str) -> None:
        """Adds the conversion of activations to 8 bits: division by the factors of their channels, then rounding.

        point: the name of the point of the network, one of `POINTS`.
        """
        scale = self._points[point].step * self._points[point].factor
        if np.size(scale) > 1:
            zero = self.graph.constant(f"{point}.zeros", np.zeros(np.size(scale), np.uint8))
        else:
            scale, zero = np.reshape(scale, ()), self._zero
        self.graph.add("QuantizeLinear", self._step(f"{point}.in", scale), zero, axis=1)

    def dequantize(self, point: str, output: str | None = None) -> None:
        """Adds the conversion of activations from 8 bits back to float32.

        point: as for `quantize`. output: the name of the result.
        """
        scale = self._points[point].step * self._points[point].factor
        step = self._step(f"{point}.out", scale)
        zeros = self.graph.constant(f"{point}.noughts", np.zeros(len(scale), np.uint8))
        self.graph.add("DequantizeLinear", step, zeros, output=output, axis=1)

    def convolution(self, name: str, kernel: int, padding: int) -> None:
        """Adds a convolution with 8-bit input and output.

        It needs no ReLU: the output is unsigned, so negative results become 0.
        """
        _, grouped, writes = _LAYERS[name]
        assert writes is not None
        bias = self.graph.constant(f"{name}.bias", self._layers[name].bias)
        self.graph.add(
            "QLinearConv",
            *self._operands(name),
            self._step(f"{name}.out", self._points[writes].step),
            self._zero,
            bias,
            kernel_shape=(kernel, kernel),
            pads=(padding,) * 4,
            group=self._config.groups if grouped else 1,
        )

    def linear(self, name: str, output: str) -> None:
        """Adds a linear layer with 8-bit input and float32 output, and its ReLU."""
        bias = self.graph.constant(f"{name}.bias", self._layers[name].bias)
        self.graph.add("QGemm", *self._operands(name), bias, domain="com.microsoft")
        self.graph.add("Relu", output=output)

    def _operands(self, name: str) -> tuple[str, ...]:
        """Returns the names of a layer's operands.

        They are the input's step and zero point, the weights, and the weights' steps and zero points. If the output
        is quantized too, the weights' steps are divided by the factors of the output's channels. So the layer's output
        is already divided by these factors.
        """
        reads, _, writes = _LAYERS[name]
        scale = self._layers[name].step
        if writes:
            scale = scale / self._points[writes].factor
        zeros = self.graph.constant(f"{name}.zeros", np.zeros(len(scale), np.int8))
        return (
            self._step(f"{name}.in", self._points[reads].step),
            self._zero,
            self.graph.weight(f"{name}.weight", np.int8),
            self._step(f"{name}.weight", scale),
            zeros,
        )

    def _step(self, name: str, scale: Floats | float) -> str:
        return self.graph.constant(f"{name}.step", np.asarray(scale, np.float32))
