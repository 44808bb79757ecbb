"""Builds the torch network of an architecture."""

from __future__ import annotations

from typing import Any

from simsearch.models.networks.alexnet import AlexNet
from simsearch.models.networks.base import Network
from simsearch.models.networks.convnet4 import ConvNet4
from simsearch.models.networks.lenet5 import LeNet5

NETWORKS: dict[str, Any] = {"alexnet": AlexNet, "lenet5": LeNet5, "convnet4": ConvNet4}
"""The network class of each architecture; its argument is a configuration (`models.registry.ARCHITECTURES`)."""


def build_network(architecture: str, config: Any) -> Network:
    """Returns a network with random weights, drawn from torch's default generator.

    architecture: a key of `NETWORKS`. config: the configuration of this architecture.
    """
    network: Network = NETWORKS[architecture](config)
    return network
