"""From an architecture's name to its network in torch."""

from __future__ import annotations

from typing import Any

from simsearch.models.alexnet import AlexNet
from simsearch.models.convnet import ConvNet4
from simsearch.models.lenet import LeNet5
from simsearch.models.network import Network

NETWORKS: dict[str, Any] = {"alexnet": AlexNet, "lenet5": LeNet5, "convnet4": ConvNet4}
"""Networks by the names of `simsearch.models.ARCHITECTURES`; each takes that architecture's configuration."""


def make(architecture: str, config: Any) -> Network:
    """A network with first weights drawn from torch's random numbers."""
    network: Network = NETWORKS[architecture](config)
    return network
