"""LeNet-5, the network of LeCun et al. 1998.

LeCun, Bottou, Bengio, Haffner: "Gradient-based learning applied to document recognition", Proc. IEEE 86(11), 1998.
Section II.B describes the layers, II.C the loss, appendix A the squashing function and the initial weights.

It has 60,000 trainable parameters (156 + 12 + 1,516 + 32 + 48,120 + 10,164; a test counts them).

Shape letters: B images in a batch, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simsearch.models.networks.base import Network
from simsearch.models.networks.configs import LeNet5Config
from simsearch.models.networks.lenet5_tables import C3_TABLE, LUMA, codes

RUBBISH = 10.0
"""The constant j of the loss: the distance of an image to a "rubbish" class beside the C classes.

The paper only says that j is positive. Of 0.1, 3, 10, 20 and 1000, the value 10 gave the fewest errors on 10,000
held-out training images."""


class Squash(nn.Module):
    """The activation 1.7159 tanh(2/3 x), which maps 1 to 1 and -1 to -1 (appendix A)."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(x * (2 / 3))


class Subsampling(nn.Module):
    """Layers S2 and S4: adds up the values in each 2 x 2 square, then applies a trainable factor and bias per map."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(maps, 1, 1))
        self.bias = nn.Parameter(torch.zeros(maps, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2) * 4 * self.weight + self.bias


class ChosenMaps(nn.Conv2d):
    """A convolution in which each output map reads only some input maps (table I)."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__(6, 16, 5)
        self.register_buffer("table", torch.from_numpy(C3_TABLE.copy())[:, :, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.table, self.bias)


class RadialBasis(nn.Module):
    """The last layer: a logit is minus the squared Euclidean distance of layer F6 to a class's code (equation 7)."""

    codes: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("codes", torch.from_numpy(codes(classes)))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # bfloat16's 8 bits are too few for sums of 84 squares
            x = x.float()
            return 2 * x @ self.codes.T - x.square().sum(1, keepdim=True) - self.codes.square().sum(1)


class LeNet5(Network):
    """The network. Input: (B, 3, 32, 32) float. Output: (B, C) logits.

    The network uses only the luminance of the input. In the luminance, background is -0.1 and ink is 1.175.
    """

    def __init__(self, config: LeNet5Config | None = None) -> None:
        super().__init__()
        self.config = config or LeNet5Config()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 5),  # C1 (B, 6, 28, 28)
            Squash(),
            Subsampling(6),  # S2 (B, 6, 14, 14)
            Squash(),
            ChosenMaps(),  # C3 (B, 16, 10, 10)
            Squash(),
            Subsampling(16),  # S4 (B, 16, 5, 5)
            Squash(),
            nn.Conv2d(16, 120, 5),  # C5 (B, 120, 1, 1)
            Squash(),
            nn.Flatten(),
            nn.Linear(120, 84),  # F6 (B, 84)
            Squash(),
        )
        self.classifier = RadialBasis(self.config.num_classes)  # (B, C)
        self.register_buffer("luma", torch.tensor(LUMA)[None, :, None, None], persistent=False)
        self.luma: Tensor
        self.initialise()

    def initialise(self, gain: float | None = None) -> None:
        """Draws weights uniformly from +-2.4 / fan in (appendix A) and sets biases to 0.

        If `gain` is given, weights are Gaussian with standard deviation gain / sqrt(fan in).
        """
        for layer in self.layers:
            if isinstance(layer, Subsampling):
                nn.init.constant_(layer.weight, 0.25)  # the average of the four positions
                nn.init.zeros_(layer.bias)
            elif isinstance(layer, nn.Conv2d | nn.Linear):
                fan_in = layer.weight[0].numel()
                if isinstance(layer, ChosenMaps):
                    fan_in = 25 * int(layer.table[0].sum())
                if gain is None:
                    nn.init.uniform_(layer.weight, -2.4 / fan_in, 2.4 / fan_in)
                else:
                    nn.init.normal_(layer.weight, std=gain / fan_in**0.5)
                if isinstance(layer, ChosenMaps):
                    with torch.no_grad():
                        layer.weight.mul_(layer.table)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def features(self, x: Tensor) -> Tensor:
        """Returns the features (B, 84) of images x (B, 3, 32, 32): layer F6 after its activation, -1.7159 to 1.7159."""
        hidden: Tensor = self.layers((x * self.luma).sum(1, keepdim=True))
        return hidden

    def loss(self, logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Returns the loss of equation 9, a scalar: the mean over the images of y[label] + log(e^-j + sum_i e^-y[i]).

        y is the image's row of -logits, i runs over the classes, and j is `RUBBISH`.
        logits: (B, C). labels: (B,) int64. smoothing: the amount of label smoothing, from 0 to 1.
        """
        rubbish = torch.full_like(logits[:, :1], -RUBBISH)
        total = torch.logsumexp(torch.cat([logits, rubbish], 1), 1)
        target = logits.gather(1, labels[:, None]).squeeze(1)
        if smoothing:
            target = (1 - smoothing) * target + smoothing * logits.mean(1)
        return (total - target).mean()
