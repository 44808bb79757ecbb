"""What the training loop and the runtime need of a network in torch, and which there are."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from simsearch.models.networks.configs import Config


class Network(nn.Module):
    """A network that ends in features and a classifier over them."""

    config: Config
    classifier: nn.Module

    def features(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) float, normalised by the recipe -> (B, D)."""
        raise NotImplementedError

    def activations(self, x: Tensor) -> dict[str, Tensor]:
        """What can be searched by, by name: `features`, and for some networks earlier layers as well."""
        return {"features": self.features(x)}

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, C) logits; softmax turns them into the class probabilities."""
        logits: Tensor = self.classifier(self.features(x))
        return logits

    def initialise(self, gain: float | None = None) -> None:
        """Draws the weights anew: as the network's paper says, or with deviation gain / sqrt(fan in)."""
        raise NotImplementedError

    def loss(self, logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """(B, C) float32 logits and (B,) int64 labels -> the mean loss, a scalar."""
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
