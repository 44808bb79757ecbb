"""The base class of networks in torch, as the training loop and the runtime use them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from simsearch.models.networks.configs import Config


class Network(nn.Module):
    """A network of two parts: one computes features, the other classifies them."""

    config: Config
    classifier: nn.Module

    def features(self, x: Tensor) -> Tensor:
        """Computes features: (B, 3, S, S) float, normalised as the recipe says -> (B, D)."""
        raise NotImplementedError

    def activations(self, x: Tensor) -> dict[str, Tensor]:
        """Returns the layers usable for search, by name: `features`, and in some networks earlier layers."""
        return {"features": self.features(x)}

    def forward(self, x: Tensor) -> Tensor:
        """Computes logits, (B, 3, S, S) -> (B, C); their softmax is the class probabilities."""
        logits: Tensor = self.classifier(self.features(x))
        return logits

    def initialise(self, gain: float | None = None) -> None:
        """Draws new random weights, as in the network's paper or with standard deviation gain / sqrt(fan in)."""
        raise NotImplementedError

    def loss(self, logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Returns the mean loss, a scalar, of logits (B, C) float32 and labels (B,) int64."""
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
