"""Small networks, data and settings for tests of training."""

import torch

from simsearch.models.networks.alexnet import AlexNet
from simsearch.models.networks.configs import AlexNetConfig
from simsearch.training.config import TrainConfig

SMALL = AlexNetConfig(num_classes=3, image_size=63, channels=(8, 8, 8, 8, 8), hidden=16)


FAST = TrainConfig(
    image_size=63,
    epochs=4,
    batch_size=16,
    learning_rate=0.02,
    schedule="cosine",
    warmup=0.08,
    nesterov=True,
    label_smoothing=0.1,
    clip=5.0,
    dropout=0.1,
    gain=2**0.5,
    patches="scaled",
)


def fresh():
    torch.manual_seed(0)
    network = AlexNet(SMALL)
    network.initialise(gain=2**0.5)
    return network
