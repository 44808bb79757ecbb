"""Batch normalisation while training: what ships is the paper's network without it."""

import pytest
import torch
from torch import nn

from simsearch.models.networks.alexnet import AlexNet
from simsearch.models.networks.build import build_network
from simsearch.models.networks.configs import AlexNetConfig
from simsearch.training import batch_norm


def trained_a_little() -> AlexNet:
    """An AlexNet with normalisations whose statistics, scales and offsets are all far from where they began."""
    torch.manual_seed(0)
    network = AlexNet(AlexNetConfig(num_classes=7, image_size=64))
    network.initialise(2**0.5)
    batch_norm.add(network)
    network.train()
    for _ in range(4):
        network.features(torch.randn(16, 3, 64, 64) * 3 + 1)
    for module in network.modules():
        if isinstance(module, batch_norm.Normalised):
            nn.init.uniform_(module.norm.weight, 0.5, 2)
            nn.init.uniform_(module.norm.bias, -1, 1)
    return network.eval()


def test_folded_agrees_with_unfolded_to_rounding():
    network = trained_a_little()
    x = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        before = network.features(x), network(x)
        batch_norm.fold(network)
        after = network.features(x), network(x)
    for one, other in zip(before, after, strict=True):
        assert one.abs().max() > 0.1
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5 * float(one.abs().max()))


def test_a_folded_network_is_the_papers():
    network = trained_a_little()
    batch_norm.fold(network)
    plain = build_network("alexnet", AlexNetConfig(num_classes=7, image_size=64))
    shapes = {name: value.shape for name, value in plain.state_dict().items()}
    assert {name: value.shape for name, value in network.state_dict().items()} == shapes
    plain.load_state_dict(network.state_dict())
    assert not any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in network.modules())


def test_all_but_classifier_are_normalised_once():
    network = build_network("alexnet", AlexNetConfig(num_classes=7, image_size=64))
    batch_norm.add(network)
    batch_norm.add(network)
    names = [name for name, module in network.named_modules() if isinstance(module, batch_norm.Normalised)]
    assert names == ["conv.0", "conv.4", "conv.8", "conv.10", "conv.12", "hidden.1", "hidden.4"]
    assert isinstance(network.classifier, nn.Linear)


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 5, 3), nn.Linear(4, 5)])
def test_folded_layer_gets_a_bias(layer):
    shape = (6, 3, 9, 9) if isinstance(layer, nn.Conv2d) else (6, 4)
    normalised = batch_norm.Normalised(layer)
    normalised(torch.randn(shape))
    normalised.eval()
    x = torch.randn(shape)
    with torch.no_grad():
        before = normalised(x)
        folded = normalised.folded()
        torch.testing.assert_close(folded(x), before, rtol=1e-4, atol=1e-5)
    assert folded.bias is not None and folded.bias.requires_grad


def test_adopted_network_goes_on_as_it_was():
    torch.manual_seed(3)
    network = build_network("alexnet", AlexNetConfig(num_classes=7, image_size=64, dropout=0.0))
    network.initialise(2**0.5)
    for name, value in network.named_parameters():
        if name.endswith("bias"):
            nn.init.uniform_(value, -0.3, 0.3)
    batches = [torch.randn(64, 3, 64, 64) for _ in range(3)]
    network.eval()
    with torch.no_grad():
        before = network.features(batches[0])
        batch_norm.adopt(network, batches)
        network.eval()
        after = network.features(batches[0])
    likeness = torch.cosine_similarity(before, after)
    assert likeness.min() > 0.99
    assert (
        abs(float(dict(network.named_parameters())["conv.4.layer.weight"].detach().std()) - (2 / (5 * 5 * 48)) ** 0.5)
        < 1e-3
    )
