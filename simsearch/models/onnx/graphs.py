"""Builds the networks of simsearch as ONNX graphs, without torch, for ONNX Runtime on the CPU.

The functions `alexnet`, `lenet5` and `convnet4` return the torch network of the same name as a graph. The graph begins
with the recipe's normalisation. The graph's input is `pixels` (B, S, S, 3) uint8; its outputs are `features` (B, D)
float32 and `logits` (B, C) float32. A test compares the ONNX graphs with the torch networks on real images.

The numbers of protocol buffer fields are those in onnx.proto (ONNX 1.x, operator set 17).

Shape letters: B images in a batch, S side of the input, D dimension of the features, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from simsearch.images.preprocessing import Preprocessing
from simsearch.models.networks.configs import AlexNetConfig, ConvNet4Config, LeNet5Config
from simsearch.models.networks.lenet5_tables import LUMA
from simsearch.models.onnx.protobuf import (
    FLOAT,
    UINT8,
    attribute,
    bytes_field,
    integer_field,
    message_field,
    text_field,
    value_info,
)
from simsearch.models.safetensors_header import TensorLocation

VERSION = 3
"""Part of the name of the cached graph; increase it whenever one of the graphs changes."""

_KINDS = {"float32": FLOAT, "uint8": UINT8, "int8": 3, "int32": 6, "int64": 7}

_OPERATOR_SET = 17

_IR_VERSION = 8


Locations = Mapping[str, TensorLocation]
"""A mapping from the name of each tensor to its location in the file of weights."""


class Graph:
    """A chain of ONNX nodes: each added node reads the output of the node before it.

    weights_file: the name of the file that has the weights; it lies in the folder of the graph.
    tensors: the locations of the weights in that file.
    """

    def __init__(self, name: str, tensors: Locations, weights_file: str) -> None:
        self.name, self.tensors, self.weights_file = name, tensors, weights_file
        self.nodes: list[bytes] = []
        self.initializers: list[bytes] = []
        self.last = "pixels"
        self.domains = {""}

    def add(
        self, operator: str, *constants: str, output: str | None = None, domain: str = "", **attributes: Any
    ) -> None:
        """Appends a node that reads the last output and `constants`.

        operator: the name of the node's ONNX operator. constants: the names of the node's other inputs.
        output: the name of the node's output; by default a new name.
        domain: the domain of the operator; empty for ONNX's own operators. attributes: the operator's attributes.
        """
        output = output or f"x{len(self.nodes)}"
        fields = [text_field(1, name) for name in (self.last, *constants)]
        fields += [text_field(2, output), text_field(3, output), text_field(4, operator)]
        fields += [message_field(5, attribute(key, value)) for key, value in attributes.items()]
        fields += [text_field(7, domain)] if domain else []
        self.domains |= {domain}
        self.nodes.append(b"".join(fields))
        self.last = output

    def constant(self, name: str, array: np.ndarray[Any, np.dtype[Any]]) -> str:
        """Stores a small tensor in the graph itself and returns its name."""
        dims = b"".join(integer_field(1, size) for size in array.shape)
        raw = bytes_field(9, np.ascontiguousarray(array).tobytes())
        self.initializers.append(dims + integer_field(2, _KINDS[array.dtype.name]) + text_field(8, name) + raw)
        return name

    def weight(self, name: str, kind: type = np.float32) -> str:
        """Adds a reference to a tensor in the file of weights, and returns the tensor's name.

        The tensor stays outside the graph, so that ONNX Runtime can map it from the file into memory.
        kind: the NumPy type of the tensor.
        """
        shape, first, size = self.tensors[name]
        entries = {"location": self.weights_file, "offset": str(first), "length": str(size)}
        external = b"".join(
            message_field(13, text_field(1, key) + text_field(2, value)) for key, value in entries.items()
        )
        dims = b"".join(integer_field(1, n) for n in shape)
        number = _KINDS[np.dtype(kind).name]
        self.initializers.append(
            dims + integer_field(2, number) + text_field(8, name) + external + integer_field(14, 1)
        )
        return name

    def model(self, side: int, outputs: dict[str, int | tuple[int, ...]]) -> bytes:
        """Returns the finished graph as the content of an ONNX file (a ModelProto).

        side: width and height of the input, in pixels.
        outputs: maps the name of each output to its shape without the batch dimension, or to its length for a vector.
        """
        graph = b"".join(message_field(1, node) for node in self.nodes) + text_field(2, self.name)
        graph += b"".join(message_field(5, tensor) for tensor in self.initializers)
        graph += message_field(11, value_info("pixels", UINT8, (None, side, side, 3)))
        shapes = {name: (size,) if isinstance(size, int) else size for name, size in outputs.items()}
        graph += b"".join(message_field(12, value_info(name, FLOAT, (None, *shape))) for name, shape in shapes.items())
        versions = [(domain, 1 if domain else _OPERATOR_SET) for domain in sorted(self.domains)]
        operators = b"".join(
            message_field(8, text_field(1, domain) + integer_field(2, version)) for domain, version in versions
        )
        return integer_field(1, _IR_VERSION) + text_field(2, "simsearch") + message_field(7, graph) + operators


def begin(name: str, recipe: Preprocessing, tensors: Locations, weights_file: str) -> Graph:
    """Returns a new graph, whose first nodes convert and normalise pixels into the network's input (B, 3, S, S).

    name: the name of the graph. The other arguments are those of `alexnet`.
    """
    graph = Graph(name, tensors, weights_file)
    graph.add("Cast", to=FLOAT)
    graph.add("Transpose", perm=(0, 3, 1, 2))
    graph.add("Sub", graph.constant("mean", np.array(recipe.mean, np.float32).reshape(1, 3, 1, 1)))
    graph.add("Div", graph.constant("deviation", np.array(recipe.std, np.float32).reshape(1, 3, 1, 1)))
    return graph


def convolution(
    graph: Graph, layer: int, kernel: int, stride: int, padding: int, groups: int, output: str | None = None
) -> None:
    """Adds one of AlexNet's convolutions and its ReLU.

    layer: the number of the convolution in the torch module `AlexNet.conv`. output: the name of the ReLU's output.
    """
    weights = graph.weight(f"conv.{layer}.weight"), graph.weight(f"conv.{layer}.bias")
    graph.add(
        "Conv", *weights, kernel_shape=(kernel, kernel), strides=(stride, stride), pads=(padding,) * 4, group=groups
    )
    graph.add("Relu", output=output)


def normalisation(graph: Graph, channels: int) -> None:
    """Adds AlexNet's local response normalisation. channels: the number of channels of its input."""
    # x / (2 + 1e-4 * sum of 5 adjacent squares)^(3/4). The sum is a 1x1 convolution with a band matrix, and the power
    # consists of two square roots: ONNX Runtime's own LRN takes twice as long as the convolutions before it.
    x = graph.last
    near = np.abs(np.arange(channels)[:, None] - np.arange(channels)[None, :]) <= 2
    band = (1e-4 * near).astype(np.float32).reshape(channels, channels, 1, 1)
    offset = np.full(channels, 2, np.float32)
    graph.add("Mul", x)
    graph.add("Conv", graph.constant(f"{x}.band", band), graph.constant(f"{x}.offset", offset), kernel_shape=(1, 1))
    graph.add("Sqrt")
    root = graph.last
    graph.add("Sqrt")
    graph.add("Mul", root)
    scale, graph.last = graph.last, x
    graph.add("Div", scale)


def pooling(graph: Graph) -> None:
    """Adds AlexNet's pooling: the maximum of 3 x 3 positions, at stride 2."""
    graph.add("MaxPool", kernel_shape=(3, 3), strides=(2, 2))


def classifier(graph: Graph) -> None:
    """Adds AlexNet's last layer, whose output is called "logits"."""
    graph.add("Gemm", graph.weight("classifier.weight"), graph.weight("classifier.bias"), output="logits", transB=1)


def alexnet_outputs(config: AlexNetConfig) -> dict[str, int | tuple[int, ...]]:
    """Returns AlexNet's outputs: a dictionary from their names to their shapes, without the batch dimension.

    A vector's shape is its length, a number.
    """
    maps = (config.channels[4], config.map_side, config.map_side)
    return {"features": config.hidden, "logits": config.num_classes, "conv5": maps, "fc6": config.hidden}


def alexnet(config: AlexNetConfig, recipe: Preprocessing, tensors: Locations, weights_file: str) -> bytes:
    """Returns the content of an ONNX file with the network `simsearch.models.networks.alexnet.AlexNet(config)`.

    tensors: the locations of the weights in `weights_file`, which lies beside the ONNX file.
    """
    graph = begin("alexnet", recipe, tensors, weights_file)
    convolution(graph, 0, 11, 4, 2, 1)
    normalisation(graph, config.channels[0])
    pooling(graph)
    convolution(graph, 4, 5, 1, 2, config.groups)
    normalisation(graph, config.channels[1])
    pooling(graph)
    convolution(graph, 8, 3, 1, 1, 1)
    convolution(graph, 10, 3, 1, 1, config.groups)
    convolution(graph, 12, 3, 1, 1, config.groups, "conv5")
    pooling(graph)
    graph.add("Flatten", axis=1)
    graph.add("Gemm", graph.weight("hidden.1.weight"), graph.weight("hidden.1.bias"), transB=1)
    graph.add("Relu", output="fc6")
    graph.add("Gemm", graph.weight("hidden.4.weight"), graph.weight("hidden.4.bias"), transB=1)
    graph.add("Relu", output="features")
    classifier(graph)
    return graph.model(config.image_size, alexnet_outputs(config))


def lenet5(config: LeNet5Config, recipe: Preprocessing, tensors: Locations, weights_file: str) -> bytes:
    """Returns the content of an ONNX file with the network `simsearch.models.networks.lenet5.LeNet5(config)`.

    The arguments are those of `alexnet`.
    """
    graph = begin("lenet5", recipe, tensors, weights_file)

    def scalar(value: float) -> str:
        return graph.constant(f"c{len(graph.nodes)}", np.array(value, np.float32))

    def squash(output: str | None = None) -> None:
        graph.add("Mul", scalar(2 / 3))
        graph.add("Tanh")
        graph.add("Mul", scalar(1.7159), output=output)

    def convolution(layer: int) -> None:
        weights = graph.weight(f"layers.{layer}.weight"), graph.weight(f"layers.{layer}.bias")
        graph.add("Conv", *weights, kernel_shape=(5, 5))
        squash()

    def subsampling(layer: int) -> None:
        graph.add("AveragePool", kernel_shape=(2, 2), strides=(2, 2))
        graph.add("Mul", scalar(4.0))
        graph.add("Mul", graph.weight(f"layers.{layer}.weight"))
        graph.add("Add", graph.weight(f"layers.{layer}.bias"))
        squash()

    graph.add("Conv", graph.constant("luma", np.array(LUMA, np.float32).reshape(1, 3, 1, 1)), kernel_shape=(1, 1))
    convolution(0)
    subsampling(2)
    convolution(4)
    subsampling(6)
    convolution(8)
    graph.add("Flatten", axis=1)
    graph.add("Gemm", graph.weight("layers.11.weight"), graph.weight("layers.11.bias"), transB=1)
    squash("features")
    graph.add(
        "ReduceSumSquare", axes=(1,), keepdims=1
    )  # the logits are minus the squared distances to codes of 84 signs
    squares, graph.last = graph.last, "features"
    graph.add("Gemm", graph.weight("classifier.codes"), alpha=2.0, transB=1)
    graph.add("Sub", squares)
    graph.add("Sub", scalar(float(config.dimension)), output="logits")
    return graph.model(config.image_size, {"features": config.dimension, "logits": config.num_classes})


def convnet4(config: ConvNet4Config, recipe: Preprocessing, tensors: Locations, weights_file: str) -> bytes:
    """Returns the content of an ONNX file with the network `simsearch.models.networks.convnet4.ConvNet4(config)`.

    The arguments are those of `alexnet`.
    """
    graph = begin("convnet4", recipe, tensors, weights_file)
    for layer in (0, 3, 6):
        weights = graph.weight(f"conv.{layer}.weight"), graph.weight(f"conv.{layer}.bias")
        graph.add("Conv", *weights, kernel_shape=(5, 5), pads=(2, 2, 2, 2))
        graph.add({"relu": "Relu", "tanh": "Tanh"}[config.activation])
        graph.add("MaxPool", kernel_shape=(3, 3), strides=(2, 2))
    graph.add("Flatten", output="features", axis=1)
    graph.add("Gemm", graph.weight("classifier.weight"), graph.weight("classifier.bias"), output="logits", transB=1)
    return graph.model(config.image_size, {"features": config.dimension, "logits": config.num_classes})
