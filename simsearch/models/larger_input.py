"""Adapts weights of AlexNet to a larger input than in their training.

A network recognises more images correctly if its input is larger than in its training (Touvron et al.: "Fixing the
train-test resolution discrepancy", NeurIPS 2019). Convolutions take an input of any size. But the first hidden layer
has a weight for each position of the convolutions' last maps, and a larger input has larger maps. So the weights of
this layer are interpolated when a weights file is read. The file stores the weights as they were trained, because these
are fewer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from simsearch.models.networks.configs import AlexNetConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

FIRST_HIDDEN = "hidden.1.weight"
"""The name of the first hidden layer's weights."""


def interpolation(old: int, new: int) -> NDArray[np.float32]:
    """Returns the matrix (new, old) that interpolates weights along one side of the maps, from `old` to `new` places.

    Its transpose does the opposite for maps: weights of the old size times maps that were multiplied by the transpose
    on both sides equal enlarged weights times the maps.
    """
    places = np.linspace(0, old - 1, new)
    shares: NDArray[np.float32] = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(old)[None, :])).astype(
        np.float32
    )
    shares *= old / new
    return shares


def enlarged(weight: NDArray[np.float32], channels: int, flat: int) -> NDArray[np.float32]:
    """Returns the weights of a linear layer over maps of side s, interpolated for maps of another side t.

    weight: (O, channels * s * s) float32. flat: channels * t * t, the width of the result (O, flat) float32.
    The interpolation is bilinear; the corners of the old and the new maps coincide. The weights are multiplied by
    (s / t)^2, so that the sum over the positions stays about the same.
    """
    old, new = (math.isqrt(width // channels) for width in (weight.shape[1], flat))
    if channels * old * old != weight.shape[1] or channels * new * new != flat or min(old, new) < 1:
        raise ValueError(f"weights for {weight.shape[1]} inputs cannot be enlarged to {flat} inputs")
    if old == new:
        return weight
    between = interpolation(old, new)
    maps = weight.reshape(len(weight), channels, old, old)
    return np.ascontiguousarray(between @ maps @ between.T, np.float32).reshape(len(weight), flat)


def enlarge(
    tensors: dict[str, NDArray[np.float32]], architecture: str, arguments: Mapping[str, Any], most: int
) -> None:
    """Replaces the first hidden layer's weights by those for the input size in `arguments`.

    tensors: the weights of a network by name. arguments: the arguments of the network's configuration class.
    most: the largest permitted number of weights of the layer.
    Raises ValueError or TypeError if the network is not AlexNet, or if the weights cannot be enlarged.
    """
    if architecture != "alexnet" or FIRST_HIDDEN not in tensors:
        raise ValueError("only the weights of AlexNet can be enlarged for a larger input")
    config = AlexNetConfig(**arguments)
    weight = tensors[FIRST_HIDDEN]
    if weight.ndim != 2 or len(weight) * config.flat > most:
        raise ValueError(
            f"the first hidden layer's weights are not a matrix, or an input of "
            f"{config.image_size} pixels a side needs too many weights for the size of this file"
        )
    tensors[FIRST_HIDDEN] = enlarged(weight, config.channels[4], config.flat)
