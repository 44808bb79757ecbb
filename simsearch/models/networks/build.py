"""From an architecture's name to its network in torch."""

from __future__ import annotations

from typing import Any

from simsearch.models.networks.alexnet import AlexNet
from simsearch.models.networks.base import Network
from simsearch.models.networks.convnet4 import ConvNet4
from simsearch.models.networks.lenet5 import LeNet5

NETWORKS: dict[str, Any] = {"alexnet": AlexNet, "lenet5": LeNet5, "convnet4": ConvNet4}
"""Networks by the names of `simsearch.models.registry.ARCHITECTURES`; each takes that architecture's configuration."""


def build_network(architecture: str, config: Any) -> Network:
    """A network with first weights drawn from torch's random numbers."""
    network: Network = NETWORKS[architecture](config)
    return network
