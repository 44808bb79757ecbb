"""What can vary in each network. The defaults are those of the papers; importing this imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol


class Config(Protocol):
    """What every configuration has. num_classes: C. image_size: S, side of the input. dimension: D, the features."""

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
        """Inputs of the first hidden layer: channels times positions after the last pooling."""
        side = (self.map_side - 3) // 2 + 1
        return self.channels[4] * side * side

    @property
    def map_side(self) -> int:
        """Side of the last convolution's maps, before the last pooling."""
        side = (self.image_size + 2 * 2 - 11) // 4 + 1
        for _ in range(2):
            side = (side - 3) // 2 + 1
        return side

    @property
    def dimension(self) -> int:
        return self.hidden


@dataclass(frozen=True)
class LeNet5Config:
    """The configuration of `lenet5.LeNet5`. With another number of classes than ten its output codes are random."""

    num_classes: int = 10
    image_size: int = 32
    dropout: float = 0.0  # the network of 1998 has none

    @property
    def dimension(self) -> int:
        return 84


@dataclass(frozen=True)
class ConvNet4Config:
    """The configuration of `convnet4.ConvNet4`: above all the unit, which figure 1 of AlexNet compares."""

    num_classes: int = 10
    image_size: int = 32
    activation: Literal["relu", "tanh"] = "relu"
    channels: tuple[int, int, int] = (32, 32, 64)
    dropout: float = 0.0

    @property
    def sides(self) -> tuple[int, int, int]:
        """Sides of the maps after each pooling."""
        first = (self.image_size - 3) // 2 + 1
        second = (first - 3) // 2 + 1
        return first, second, (second - 3) // 2 + 1

    @property
    def dimension(self) -> int:
        return self.channels[2] * self.sides[2] ** 2
