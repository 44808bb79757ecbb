"""The configuration of each network, with the defaults of its paper. This module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, Protocol

LARGEST, LARGEST_IMAGE = 1 << 20, 4096
"""Largest permitted number in a configuration, and largest permitted side of the input in pixels."""


class Config(Protocol):
    """The fields of every configuration.

    num_classes: the number of classes. image_size: the side of the input, in pixels.
    dimension: the number of features of an image.
    """

    @property
    def num_classes(self) -> int: ...
    @property
    def image_size(self) -> int: ...
    @property
    def dimension(self) -> int: ...


@dataclass(frozen=True)
class AlexNetConfig:
    """The configuration of `alexnet.AlexNet`."""

    num_classes: int = 1000
    image_size: int = 224
    channels: tuple[int, int, int, int, int] = (96, 256, 384, 384, 256)
    hidden: int = 4096
    groups: int = 2
    dropout: float = 0.5

    @property
    def flat(self) -> int:
        """The number of inputs of the first hidden layer: channels times positions after the last pooling."""
        side = (self.map_side - 3) // 2 + 1
        return self.channels[4] * side * side

    @property
    def map_side(self) -> int:
        """The side of the last convolution's maps, before the last pooling."""
        side = (self.image_size + 2 * 2 - 11) // 4 + 1
        for _ in range(2):
            side = (side - 3) // 2 + 1
        return side

    @property
    def dimension(self) -> int:
        """The number of features of an image."""
        return self.hidden


@dataclass(frozen=True)
class LeNet5Config:
    """The configuration of `lenet5.LeNet5`.

    The last layer compares the features of an image with a code for each class. For ten classes, the codes are drawings
    of the digits. For any other number of classes, they are random.
    """

    num_classes: int = 10
    image_size: int = 32
    dropout: float = 0.0  # the network of 1998 has none

    @property
    def dimension(self) -> int:
        """The number of features of an image."""
        return 84


@dataclass(frozen=True)
class ConvNet4Config:
    """The configuration of `convnet4.ConvNet4`.

    activation: "relu" or "tanh", which figure 1 of the AlexNet paper compares.
    channels: the number of output channels of each of the three convolutions.
    """

    num_classes: int = 10
    image_size: int = 32
    activation: Literal["relu", "tanh"] = "relu"
    channels: tuple[int, int, int] = (32, 32, 64)
    dropout: float = 0.0

    @property
    def sides(self) -> tuple[int, int, int]:
        """The side of the maps after each of the three poolings."""
        first = (self.image_size - 3) // 2 + 1
        second = (first - 3) // 2 + 1
        return first, second, (second - 3) // 2 + 1

    @property
    def dimension(self) -> int:
        """The number of features of an image."""
        return self.channels[2] * self.sides[2] ** 2


def check_config(config: Config, weights: int) -> None:
    """Raises TypeError or ValueError if a configuration from a file has an impossible value or is too large.

    weights: the largest number of weights that the network may have.
    """
    for field in fields(config):  # type: ignore[arg-type]
        value, default = getattr(config, field.name), field.default
        kinds = (int, float) if isinstance(default, float) else (type(default),)
        parts = value if isinstance(value, tuple) else (value,)
        if type(value) not in kinds or (isinstance(default, tuple) and len(parts) != len(default)):
            raise TypeError(f"{field.name} has an impossible value: {str(value)[:60]}")
        for part in parts:
            if isinstance(default, tuple) and type(part) is not int:
                raise TypeError(f"{field.name} has an impossible value: {str(value)[:60]}")
            if not isinstance(part, str) and not 0 <= part <= LARGEST:
                raise ValueError(f"{field.name} has the value {part}, but must be from 0 to {LARGEST:,}")
    dimension = config.dimension
    inputs = config.flat + dimension if isinstance(config, AlexNetConfig) else 0
    if isinstance(config, AlexNetConfig) and (min(config.channels) < 1 or config.map_side < 3 or config.groups < 1):
        raise ValueError("image_size, channels or groups is too small: a layer would have no outputs")
    if isinstance(config, ConvNet4Config) and (min(config.channels) < 1 or min(config.sides) < 1):
        raise ValueError("image_size or channels is too small: a layer would have no outputs")
    if dimension < 1 or config.num_classes < 1 or not 1 <= config.image_size <= LARGEST_IMAGE:
        raise ValueError(f"image_size is not from 1 to {LARGEST_IMAGE:,}, or the number of features or of classes is 0")
    if dimension * (inputs + config.num_classes) > weights:
        raise ValueError(f"with {dimension:,} features, the network would have far more weights than the file")
