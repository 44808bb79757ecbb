"""AlexNet in 8-bit integers, for ONNX Runtime on the CPU. The first convolution, the normalisations and the classifier
stay in float32.

Weights are signed, with a step for each output channel; activations, none of which is negative, are unsigned, from 0 to
the largest value that training images gave (`ranges`); sums are 32-bit and exact, so the features depend neither on the
batch nor on the threads. An activation is quantised in equal steps over all channels, though some channels reach ten
times as far as others. Each is therefore divided by a factor of its own, which the next layer's weights take back
(Nagel et al., ICCV 2019; Xiao et al., ICML 2023), which costs nothing: ReLU and pooling let factors pass.

Shape letters: I inputs and O outputs of a layer, in channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from simsearch.errors import WeightsError
from simsearch.models.onnx import graphs
from simsearch.models.onnx.graphs import Stored

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from simsearch.images.preprocessing import Preprocessing
    from simsearch.models.networks.configs import AlexNetConfig

    Floats = NDArray[np.float32]

VERSION = 1
"""Part of the cached graph's file name: raise it whenever the graph or a number in it changes."""

POINTS = ("pool1", "relu2", "pool2", "relu3", "relu4", "relu5", "fc6")
"""Where the ranges are measured: after the layer's ReLU or pooling, as numbered in the paper."""

FLOAT = ("conv.0.weight", "conv.0.bias", "classifier.weight", "classifier.bias")
"""What stays in float32."""

_LAYERS = {
    "conv.4": ("pool1", True, "relu2"),
    "conv.8": ("pool2", False, "relu3"),
    "conv.10": ("relu3", True, "relu4"),
    "conv.12": ("relu4", True, "relu5"),
    "hidden.1": ("relu5", False, None),
    "hidden.4": ("fc6", False, None),
}
"""For each layer: the point that it reads, whether in groups, and the point that it writes in 8 bits."""

_TOWARDS_ACTIVATIONS = 0.75
"""How much of the spread between channels moves from the activations into the weights, which suffer from it less."""

_BLOCK = 1 << 17
"""Weights looked at together, so that they stay in the processor's cache."""


class Layer(NamedTuple):
    """weight: int8 in the shape of the float one. step: (O,) of the weights. bias: (O,) in units of both steps."""

    weight: NDArray[np.int8]
    step: Floats
    bias: NDArray[np.int32]


class Point(NamedTuple):
    """factor: (I,) that each channel is divided by. step: of the 256 values that it then has."""

    factor: Floats
    step: float


class QuantizedNetwork(NamedTuple):
    """The network's 8-bit half: layers by name, activations by point."""

    layers: dict[str, Layer]
    points: dict[str, Point]


def quantize(config: AlexNetConfig, tensors: Mapping[str, Floats], ranges: Mapping[str, Floats]) -> QuantizedNetwork:
    """tensors: the network's, by name. ranges: the largest values by point (`POINTS`), (I,), but (1,) for fc6.

    Raises WeightsError where the two do not fit.
    """
    if missing := [name for name in POINTS if name not in ranges]:
        raise WeightsError(f"the ranges of {missing[0]} are missing")
    channels = (*config.channels[:2], *config.channels[1:], 1)
    for point, count in zip(POINTS, channels, strict=True):
        if len(ranges[point]) != count:
            raise WeightsError(f"{point} has {count} channels, but there are {len(ranges[point])} ranges")
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
        whole = np.clip(np.rint(flat / step[:, None]), -127, 127).astype(np.int8)
        bias = np.rint(tensors[f"{name}.bias"].astype(np.float64) / (step.astype(np.float64) * points[point].step))
        layers[name] = Layer(whole.reshape(weight.shape), step, np.clip(bias, -(2**31), 2**31 - 1).astype(np.int32))
    return QuantizedNetwork(layers, points)


def _point(largest: Floats, weights: Floats | None) -> Point:
    """weights: (I,) the largest of the next layer's for each channel; None where no layer follows."""
    largest = np.maximum(largest, max(float(largest.max()) * 0.02, 1e-6))
    if len(largest) == 1:
        factor = np.ones(1, np.float32)
    elif weights is None:
        factor = largest / largest.max()
    else:
        weights = np.maximum(weights, max(float(weights.max()) * 0.02, 1e-6))
        factor = largest**_TOWARDS_ACTIVATIONS / weights ** (1 - _TOWARDS_ACTIVATIONS)
        factor = factor / factor.max()
    return Point(factor.astype(np.float32), float((largest / factor).max()) / 255)


def _steps(rows: Floats) -> Floats:
    """For each of (O, n) rows the step of its 255 values that leaves the smallest squared error."""
    blocks = np.array_split(rows, min(len(rows), 1 + rows.size // _BLOCK))
    return np.concatenate([_steps_of(block) for block in blocks])


def _steps_of(rows: Floats) -> Floats:
    largest = np.maximum(np.abs(rows).max(1), 1e-8)
    best, least = largest / 127, np.full(len(rows), np.inf)
    for share in np.linspace(1, 0.64, 13, dtype=np.float32):
        step = (largest * share / 127)[:, None]
        wrong = np.square(np.clip(np.rint(rows / step), -127, 127) * step - rows).sum(1)
        best, least = np.where(wrong < least, step[:, 0], best), np.minimum(wrong, least)
    found: Floats = best.astype(np.float32)
    return found


def arrays(tensors: Mapping[str, Floats], quantised: QuantizedNetwork) -> dict[str, NDArray[Any]]:
    """What the graph of `alexnet` refers to by name; linear layers lie inputs first, which a single image needs."""
    kept: dict[str, NDArray[Any]] = {name: tensors[name] for name in FLOAT}
    for name, layer in quantised.layers.items():
        kept[f"{name}.weight"] = layer.weight if layer.weight.ndim == 4 else np.ascontiguousarray(layer.weight.T)
    return kept


def alexnet(
    config: AlexNetConfig, recipe: Preprocessing, stored: Stored, location: str, quantised: QuantizedNetwork
) -> bytes:
    """The ONNX model of the quantised network, its weights in the file `location`; outputs as `graphs.alexnet`."""
    graph = graphs.begin("alexnet-int8", recipe, stored, location)
    points = quantised.points

    def step(name: str, scale: Floats | float) -> str:
        return graph.constant(f"{name}.step", np.asarray(scale, np.float32))

    nought = graph.constant("nought", np.zeros((), np.uint8))

    def normalisation(channels: int, side: int) -> None:
        """As `graphs.normalisation`, but a pooling adds up adjacent channels, in less time."""
        x, last = graph.last, f"{graph.last}.norm"
        graph.add("Mul", x)
        graph.add("Reshape", graph.constant(f"{last}.flat", np.array([0, 1, channels, -1], np.int64)))
        graph.add("AveragePool", kernel_shape=(5, 1), pads=(2, 0, 2, 0), count_include_pad=1)
        graph.add("Mul", graph.constant(f"{last}.alpha", np.array(5e-4, np.float32)))
        graph.add("Add", graph.constant(f"{last}.k", np.array(2, np.float32)))
        graph.add("Sqrt")
        root = graph.last
        graph.add("Sqrt")
        graph.add("Mul", root)
        graph.add("Reshape", graph.constant(f"{last}.back", np.array([0, channels, side, side], np.int64)))
        scale, graph.last = graph.last, x
        graph.add("Div", scale)

    def quantised_from(point: str) -> None:
        """Divides by the point's factors and rounds."""
        scale = points[point].step * points[point].factor
        many = np.size(scale) > 1
        zero = graph.constant(f"{point}.zeros", np.zeros(np.size(scale), np.uint8)) if many else nought
        graph.add("QuantizeLinear", step(f"{point}.in", scale if many else np.reshape(scale, ())), zero, axis=1)

    def layer(name: str) -> tuple[str, ...]:
        """The operands of a layer up to its weights' zero point; results come divided by the next point's factors."""
        point, _, after = _LAYERS[name]
        scale = quantised.layers[name].step
        if after:
            scale = scale / points[after].factor
        zeros = graph.constant(f"{name}.zeros", np.zeros(len(scale), np.int8))
        return (
            step(f"{name}.in", points[point].step),
            nought,
            graph.weight(f"{name}.weight", np.int8),
            step(f"{name}.weight", scale),
            zeros,
        )

    def convolution(name: str, kernel: int, padding: int) -> None:
        _, grouped, after = _LAYERS[name]
        assert after is not None
        bias = graph.constant(f"{name}.bias", quantised.layers[name].bias)
        groups = config.groups if grouped else 1
        graph.add(
            "QLinearConv",
            *layer(name),
            step(f"{name}.out", points[after].step),
            nought,
            bias,
            kernel_shape=(kernel, kernel),
            pads=(padding,) * 4,
            group=groups,
        )

    def float_again(point: str, output: str | None = None) -> None:
        scale = points[point].step * points[point].factor
        graph.add(
            "DequantizeLinear",
            step(f"{point}.out", scale),
            graph.constant(f"{point}.noughts", np.zeros(len(scale), np.uint8)),
            output=output,
            axis=1,
        )

    def linear(name: str, output: str) -> None:
        bias = graph.constant(f"{name}.bias", quantised.layers[name].bias)
        graph.add("QGemm", *layer(name), bias, domain="com.microsoft")
        graph.add("Relu", output=output)

    side = (config.image_size + 2 * 2 - 11) // 4 + 1
    graphs.convolution(graph, 0, 11, 4, 2, 1)
    normalisation(config.channels[0], side)
    graphs.pooling(graph)
    quantised_from("pool1")
    convolution("conv.4", 5, 2)
    float_again("relu2")
    normalisation(config.channels[1], (side - 3) // 2 + 1)
    graphs.pooling(graph)
    quantised_from("pool2")
    convolution("conv.8", 3, 1)
    convolution("conv.10", 3, 1)
    convolution("conv.12", 3, 1)
    float_again("relu5", "conv5")
    graphs.pooling(graph)
    quantised_from("relu5")
    graph.add("Flatten", axis=1)
    linear("hidden.1", "fc6")
    quantised_from("fc6")
    linear("hidden.4", "features")
    graphs.classifier(graph)
    return graph.model(config.image_size, graphs.alexnet_outputs(config))
