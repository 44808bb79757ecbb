"""AlexNet, exactly as in the paper.

Krizhevsky, Sutskever, Hinton: "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012.
Section numbers below are the paper's.

Shape letters: B images in a batch, S side of the input, C classes.

At S = 224 with 1000 classes (`count` computes these numbers from the layers, and a test checks them):

- 60,965,224 parameters ("60 million").
- 659,272 neurons ("650,000"): the outputs of the five convolutions and three linear layers. The paper's own list in
  section 3.5 gives 253,440 for the first layer; but its size, 55 x 55 x 96, makes 290,400.
- 724,406,816 connections: one for each weight at each output position. Biases are not counted. 670,279,808 of the
  connections read a real input; the others read zero padding. The "630 million" in the authors' lecture is near to both
  numbers, but equals neither.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simsearch.models.networks.base import Network
from simsearch.models.networks.configs import AlexNetConfig


def local_response_norm(x: Tensor, n: int = 5, k: float = 2.0, alpha: float = 1e-4, beta: float = 0.75) -> Tensor:
    """Divides each activation by (k + alpha * s) ** beta, where s is the sum of squares in `n` adjacent channels.

    This is the formula of section 3.3. In `torch.nn.LocalResponseNorm`, alpha multiplies the mean instead of the sum.
    x: (B, C, H, W) floating point; the result has the same shape and dtype.
    The sum s is computed by adding shifted slices of the squared channels. The power is computed by two square roots if
    beta is 3/4.
    """
    if x.dtype == torch.float16:  # squares would soon overflow
        return local_response_norm(x.float(), n, k, alpha, beta).half()
    half = n // 2
    squares = F.pad(x * x, (0, 0, 0, 0, half, half))
    energy = squares[:, : x.shape[1]]
    for shift in range(1, n):
        energy = energy + squares[:, shift : shift + x.shape[1]]
    scale = k + alpha * energy
    if beta == 0.75:
        root = scale.rsqrt()
        return x * root * root.sqrt()
    return x * scale.pow(-beta)


class LocalResponseNorm(nn.Module):
    """`local_response_norm` with the paper's constants, as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return local_response_norm(x)


class AlexNet(Network):
    """The network of figure 2: five convolutions, three linear layers, split in two halves as on the paper's two GPUs.

    Input: (B, 3, S, S) float, RGB, normalised by the mean and std of the model's `Preprocessing`.
    Output: (B, C) logits.
    """

    def __init__(self, config: AlexNetConfig | None = None) -> None:
        super().__init__()
        config = config or AlexNetConfig()
        self.config = config
        c1, c2, c3, c4, c5 = config.channels
        halves = config.groups
        # The paper says 224 x 224, which an 11 x 11 kernel at stride 4 does not cover evenly; 2 pixels of padding
        # give the 55 x 55 positions in its figure. Sizes at S = 224:
        self.conv = nn.Sequential(
            nn.Conv2d(3, c1, 11, stride=4, padding=2),  # (B, 96, 55, 55)
            nn.ReLU(inplace=True),
            LocalResponseNorm(),
            nn.MaxPool2d(3, stride=2),  # (B, 96, 27, 27), overlapping (section 3.4)
            nn.Conv2d(c1, c2, 5, padding=2, groups=halves),  # (B, 256, 27, 27)
            nn.ReLU(inplace=True),
            LocalResponseNorm(),
            nn.MaxPool2d(3, stride=2),  # (B, 256, 13, 13)
            nn.Conv2d(c2, c3, 3, padding=1),  # (B, 384, 13, 13), the one convolution that reads both halves
            nn.ReLU(inplace=True),
            nn.Conv2d(c3, c4, 3, padding=1, groups=halves),  # (B, 384, 13, 13)
            nn.ReLU(inplace=True),
            nn.Conv2d(c4, c5, 3, padding=1, groups=halves),  # (B, 256, 13, 13)
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2),  # (B, 256, 6, 6)
        )
        self.hidden = nn.Sequential(
            nn.Dropout(config.dropout),
            nn.Linear(config.flat, config.hidden),  # (B, 4096)
            nn.ReLU(inplace=True),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, config.hidden),  # (B, 4096)
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Linear(config.hidden, config.num_classes)  # (B, C)
        self.initialise()

    def initialise(self, gain: float | None = None) -> None:
        """Draws Gaussian weights with standard deviation 0.01; biases are 1 in the layers that section 5 lists, else 0.

        If `gain` is given, the standard deviation is gain / sqrt(fan in) in all layers but the last one, and all biases
        are 0 (He et al., ICCV 2015, for gain = sqrt 2). Then the loss falls sooner in short trainings.
        """
        biased = {"conv.4", "conv.10", "conv.12", "hidden.1", "hidden.4"}
        for name, layer in self.named_modules():
            if not isinstance(layer, nn.Conv2d | nn.Linear):
                continue
            fan_in = layer.weight[0].numel()
            nn.init.normal_(layer.weight, std=0.01 if gain is None else gain / math.sqrt(fan_in))
            assert layer.bias is not None
            nn.init.constant_(layer.bias, 1.0 if gain is None and name in biased else 0.0)
        if gain is not None:
            nn.init.normal_(self.classifier.get_parameter("weight"), std=0.01)

    def features(self, x: Tensor) -> Tensor:
        """Returns the features (B, 4096) of images x (B, 3, S, S): the last hidden layer after ReLU (section 6.1)."""
        hidden: Tensor = self.hidden(self.conv(x).flatten(1))
        return hidden

    def activations(self, x: Tensor) -> dict[str, Tensor]:
        """Returns a mapping from the names of three layers to their outputs after the ReLU.

        "conv5": (B, 256, H, W), the last convolution, before its pooling.
        "fc6" and "features": (B, 4096), the two hidden layers.
        """
        conv5 = self.conv[:-1](x)
        fc6 = self.hidden[:3](self.conv[-1](conv5).flatten(1))
        return {"conv5": conv5, "fc6": fc6, "features": self.hidden[3:](fc6)}


class Counts(NamedTuple):
    """The results of `count`; the module's docstring defines them.

    connections_inside: the connections without those that fall on zero padding.
    """

    parameters: int
    neurons: int
    connections: int
    connections_inside: int


@dataclass
class _Tally:
    """The sums over the layers that `count` has visited so far."""

    neurons: int = 0
    connections: int = 0
    inside: int = 0


def count(model: AlexNet) -> Counts:
    """Counts parameters, neurons and connections by running one blank image through the layers."""
    tally = _Tally()

    def taps_inside(size: int, kernel: int, stride: int, padding: int, positions: int) -> int:
        starts = (position * stride - padding for position in range(positions))
        return sum(min(start + kernel, size) - max(start, 0) for start in starts)

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        outputs = output[0].numel()
        tally.neurons += outputs
        if isinstance(layer, nn.Conv2d):
            tally.connections += outputs * layer.weight[0].numel()
            spans = [
                taps_inside(
                    inputs[0].shape[2 + axis],
                    layer.kernel_size[axis],
                    layer.stride[axis],
                    int(layer.padding[axis]),
                    output.shape[2 + axis],
                )
                for axis in (0, 1)
            ]
            tally.inside += output.shape[1] * layer.weight.shape[1] * spans[0] * spans[1]
        else:
            weights = sum(p.numel() for name, p in layer.named_parameters() if name == "weight")
            tally.connections += weights
            tally.inside += weights

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(hook) for layer in layers]
    training = model.training
    try:
        model.eval()
        side = model.config.image_size
        with torch.no_grad():
            model(torch.zeros(1, 3, side, side))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    parameters = sum(p.numel() for p in model.parameters())
    return Counts(parameters, tally.neurons, tally.connections, tally.inside)
