"""Small networks, data and settings for tests of training."""

from dataclasses import replace

import torch

from simsearch.models.networks.alexnet import AlexNet
from simsearch.models.networks.configs import AlexNetConfig
from simsearch.training.config import PRESETS

SMALL = AlexNetConfig(num_classes=3, image_size=63, channels=(8, 8, 8, 8, 8), hidden=16)


FAST = replace(
    PRESETS["alexnet"]["fast"],
    image_size=63,
    epochs=4,
    batch_size=16,
    dropout=0.1,
    precision="float32",
    compile=False,
)


def fresh():
    torch.manual_seed(0)
    network = AlexNet(SMALL)
    network.initialise(gain=2**0.5)
    return network
