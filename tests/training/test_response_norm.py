"""The response normalisation of training against the paper's formula."""

import pytest
import torch
from torch import nn

from simsearch.models.networks.alexnet import LocalResponseNorm, local_response_norm
from simsearch.training.response_norm import FastResponseNorm, make_fast, plain_afterwards


def both(function, x, upward):
    x = x.clone().requires_grad_()
    output = function(x)
    return output.detach(), torch.autograd.grad(output, x, upward)[0]


def activations(channels=96, dtype=torch.float64):
    """Large enough for the sums over channels to matter."""
    torch.manual_seed(0)
    x, upward = torch.randn(2, 3, channels, 5, 4, dtype=torch.float64)
    return ((x * 40).relu().to(dtype).contiguous(memory_format=torch.channels_last), upward.to(dtype))


@pytest.mark.parametrize("channels", [3, 5, 96])
def test_output_and_gradient_are_the_formula_s(channels):
    x, upward = activations(channels)
    (expected, slope), (output, gradient) = (both(f, x, upward) for f in (local_response_norm, FastResponseNorm(False)))
    assert (expected / x.clamp(min=1)).max() > 1.2 * (expected / x.clamp(min=1))[x == x.max()]  # not a constant factor
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, slope, rtol=1e-10, atol=1e-12)


def test_bfloat16_is_near():  # as under autocast
    x, upward = activations(dtype=torch.bfloat16)
    expected, slope = both(local_response_norm, x.double(), upward.double())
    output, gradient = both(FastResponseNorm(False), x, upward)
    assert output.dtype == gradient.dtype == torch.bfloat16
    torch.testing.assert_close(output.double(), expected, rtol=0.01, atol=0.01)
    torch.testing.assert_close(gradient.double(), slope, rtol=0.02, atol=0.02)
    assert output.is_contiguous(memory_format=torch.channels_last)


def test_layers_are_replaced_and_put_back():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), LocalResponseNorm(), nn.ReLU(), LocalResponseNorm())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x = torch.randn(2, 3, 8, 8)
    expected = network(x)
    assert make_fast(network, compiled=False)
    assert [type(network[1]), type(network[3])] == [FastResponseNorm] * 2
    torch.testing.assert_close(network(x), expected)
    assert network.state_dict().keys() == before.keys()
    with pytest.raises(KeyError), plain_afterwards(network):
        raise KeyError
    assert [type(network[1]), type(network[3])] == [LocalResponseNorm] * 2
    assert torch.equal(network(x), expected)
    assert not make_fast(nn.Sequential(nn.ReLU()))
