"""Binary codes of features: the encoder of an autoencoder, whose outputs are rounded to bits.

Krizhevsky & Hinton: "Using very deep autoencoders for content-based image retrieval", ESANN 2011. Krizhevsky, Sutskever
and Hinton 2012, section 7, propose such codes for the activations of AlexNet's last hidden layer. Encoding is a few
matrix products in NumPy; `simsearch.models.hashing.autoencoder` trains the encoder.

Shape letters: n images, D dimension of the features, d_in inputs and d_out outputs of a layer.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy

from simsearch.common import outside_json
from simsearch.errors import WeightsError
from simsearch.models.safetensors_header import parse_header

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = 1
"""Version of the file format that `HashEncoder.to_bytes` writes."""

BITS = (64, 512)
"""Smallest and largest number of bits of a code. The number must be a multiple of 8."""

BLOCK = 2048
"""Number of images whose features are encoded at once."""


@dataclass(frozen=True)
class HashEncoder:
    """Encodes features as bits.

    The input of the first layer is (x - mean) * scale. Each layer computes logistic(input @ weights + biases). A bit is
    1 if the last layer's output is above 1/2.

    mean: (D,) float32. scale: one factor for all dimensions.
    weights: for each layer (d_in, d_out) float32. biases: for each layer (d_out,) float32.
    training: the settings and results of the training.
    """

    mean: NDArray[np.float32]
    scale: float
    weights: tuple[NDArray[np.float32], ...]
    biases: tuple[NDArray[np.float32], ...]
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def bits(self) -> int:
        """The number of bits of a code."""
        return int(self.weights[-1].shape[1])

    def __call__(self, features: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
        """Encodes features (n, D) as codes (n, bits / 8) uint8; the first bit is the lowest bit of the first byte."""
        out = np.empty((len(features), self.bits // 8), np.uint8)
        for start in range(0, len(features), BLOCK):
            h: NDArray[Any] = (features[start : start + BLOCK].astype(np.float32) - self.mean) * np.float32(self.scale)
            for w, b in zip(self.weights[:-1], self.biases[:-1], strict=True):
                h = logistic(h @ w + b)
            positive = h @ self.weights[-1] + self.biases[-1] > 0
            out[start : start + BLOCK] = np.packbits(positive, axis=1, bitorder="little")
        return out

    def to_bytes(self) -> bytes:
        """Returns the encoder as the content of a `.safetensors` file."""
        tensors = {"mean": self.mean}
        for number, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            tensors |= {f"{number}.weight": np.ascontiguousarray(w), f"{number}.bias": b}
        facts = {"format": FORMAT, "scale": self.scale, "layers": len(self.weights), "training": self.training}
        data: bytes = safetensors.numpy.save(tensors, {"simsearch codes": json.dumps(facts)})
        return data

    @classmethod
    def from_bytes(cls, data: bytes, path: Path) -> HashEncoder:
        """Returns the encoder from the content of a file that `to_bytes` made.

        path: the path of the file, for error messages. Raises WeightsError if the data cannot be used.
        """
        try:
            header = parse_header(data)
            facts = outside_json.parse(header.values()["__metadata__"]["simsearch codes"])
            if facts["format"] != FORMAT:
                raise ValueError(f"its format is {facts['format']!r}, this version reads {FORMAT}")
            tensors = safetensors.numpy.load(data)
            mean = tensors["mean"]
            weights = tuple(tensors[f"{n}.weight"] for n in range(facts["layers"]))
            biases = tuple(tensors[f"{n}.bias"] for n in range(facts["layers"]))
            if any(array.dtype != np.float32 for array in tensors.values()):
                raise ValueError("its numbers are not float32")
            sizes = [len(mean), *(len(b) for b in biases)]
            if [w.shape for w in weights] != list(itertools.pairwise(sizes)) or not weights or sizes[-1] % 8:
                raise ValueError("its layers do not fit together")
            return cls(mean, float(facts["scale"]), weights, biases, facts["training"])
        except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise WeightsError(f"the encoder {path} cannot be used: {error}") from error


def logistic(x: NDArray[Any]) -> NDArray[Any]:
    """Computes 1 / (1 + exp(-x)) without overflow."""
    return 0.5 * np.tanh(0.5 * x) + 0.5
