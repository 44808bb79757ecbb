"""The base class of networks in torch, with the methods that training and the computation of features call.

Shape letters: B images in a batch, S side of the input, D dimension of the features, C classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from simsearch.models.networks.configs import Config


class Network(nn.Module):
    """A network of two parts: one computes features, the other classifies them."""

    config: Config
    classifier: nn.Module

    def features(self, x: Tensor) -> Tensor:
        """Returns the features (B, D) of images x.

        x: (B, 3, S, S) float, normalised by the mean and std of the model's `Preprocessing`.
        """
        raise NotImplementedError

    def activations(self, x: Tensor) -> dict[str, Tensor]:
        """Returns a mapping from layer name to output, for the layers that are usable for search.

        These are "features" and, for AlexNet, two earlier layers.
        """
        return {"features": self.features(x)}

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits (B, C) of images x (B, 3, S, S). Their softmax gives the class probabilities."""
        logits: Tensor = self.classifier(self.features(x))
        return logits

    def initialise(self, gain: float | None = None) -> None:
        """Draws new random weights as in the network's paper.

        If `gain` is given, the standard deviation of weights is gain / sqrt(fan in).
        """
        raise NotImplementedError

    def loss(self, logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Returns the mean loss, a scalar, of logits (B, C) float32 and labels (B,) int64.

        smoothing: the amount of label smoothing, from 0 to 1.
        """
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
