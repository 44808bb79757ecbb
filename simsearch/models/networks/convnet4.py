"""The four-layer convolutional network for CIFAR-10 with which the AlexNet paper compares ReLU and tanh.

Krizhevsky et al. 2012, figure 1: "a four-layer convolutional neural network", without regularisation. The paper does
not give the sizes of its layers. The sizes used here resemble those in the authors' code for CIFAR-10 of that time:
three convolutions of 5 x 5, each followed by pooling of 3 x 3 at stride 2, and a linear layer.

Shape letters: B images in a batch, S side of the input, D dimension of the features, C classes.
"""

from __future__ import annotations

from torch import Tensor, nn

from simsearch.models.networks.base import Network
from simsearch.models.networks.configs import ConvNet4Config

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


class ConvNet4(Network):
    """The network: three convolutions and a linear layer.

    Input: (B, 3, S, S). Output: (B, C) logits. The features are the maps after the last pooling. Shapes in comments are
    for S = 32.
    """

    def __init__(self, config: ConvNet4Config | None = None) -> None:
        super().__init__()
        self.config = config = config or ConvNet4Config()
        activation = ACTIVATIONS[config.activation]
        c1, c2, c3 = config.channels
        self.conv = nn.Sequential(
            nn.Conv2d(3, c1, 5, padding=2),  # (B, 32, 32, 32)
            activation(),
            nn.MaxPool2d(3, 2),  # (B, 32, 15, 15)
            nn.Conv2d(c1, c2, 5, padding=2),
            activation(),
            nn.MaxPool2d(3, 2),  # (B, 32, 7, 7)
            nn.Conv2d(c2, c3, 5, padding=2),
            activation(),
            nn.MaxPool2d(3, 2),  # (B, 64, 3, 3)
            nn.Flatten(),
        )
        self.drop = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.dimension, config.num_classes)
        self.initialise()

    def initialise(self, gain: float | None = None) -> None:
        """Draws Gaussian weights with standard deviation 0.01 (section 5) and sets biases to 0.

        If `gain` is given, the standard deviation is gain / sqrt(fan in) in all layers but the last one.
        """
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                last = layer is self.classifier
                std = 0.01 if gain is None or last else gain / layer.weight[0].numel() ** 0.5
                nn.init.normal_(layer.weight, std=std)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def features(self, x: Tensor) -> Tensor:
        """Returns the features (B, D) of images x (B, 3, S, S). D is 576 at S = 32."""
        hidden: Tensor = self.drop(self.conv(x))
        return hidden
