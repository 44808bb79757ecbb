"""Batch normalisation during training, folded into the weights afterwards.

Ioffe, Szegedy: "Batch Normalization", ICML 2015. A normalisation after each convolution and each hidden linear layer,
before its ReLU, permits a learning rate a hundred times as high. At inference the normalisation is an affine map of
each channel, so `fold` can merge it into the weights and bias of the layer before; the network then has the original
layers of AlexNet.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

MOMENTUM = 0.03
"""Weight of each new batch in the running statistics, which thus average about the last thirty batches."""


class Normalised(nn.Module):
    """A layer without bias, followed by batch normalisation: (B, C, ...) -> (B, D, ...) for C channels in and D out."""

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        width = layer.weight.shape[0]
        self.layer = layer
        self.layer.bias = None  # the normalisation adds a bias
        kind = nn.BatchNorm2d if isinstance(layer, nn.Conv2d) else nn.BatchNorm1d
        self.norm = kind(width, momentum=MOMENTUM)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.norm(self.layer(x))
        return output

    @torch.no_grad()
    def folded(self) -> nn.Conv2d | nn.Linear:
        """Returns the layer with the normalisation (by running statistics) merged into its weights and bias."""
        norm, layer = self.norm, self.layer
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
        layer.bias = nn.Parameter(norm.bias - norm.running_mean * scale)
        return layer


def add(network: nn.Module) -> None:
    """Puts a normalisation after every convolution and linear layer except the classifier, in place.

    The biases of these layers are removed. Names of parameters change: `conv.0.weight` becomes `conv.0.layer.weight`.
    """
    for parent, name, layer in _children(network):
        if isinstance(layer, nn.Conv2d | nn.Linear) and not isinstance(parent, Normalised) and name != "classifier":
            setattr(parent, name, Normalised(layer))


@torch.no_grad()
def adopt(network: nn.Module, batches: Sequence[Tensor]) -> None:
    """Adds normalisations, like `add`, to a trained network. The directions of its features hardly change.

    batches: a few inputs of the network, (B, 3, S, S) each, on which the statistics are measured.
    Afterwards, each layer gives its former outputs divided by one number, the root mean square of its channels'
    standard deviations. The next layer's normalisation cancels the division, with two exceptions. Local response
    normalisation depends on the scale of its input, so the directions of the features change a little. The classifier
    has no normalisation, so dividing the features changes its logits.
    The weights of each layer are scaled to standard deviation sqrt(2 / fan in), because the effect of a learning rate
    depends on the size of the weights. This scaling does not change the outputs, because the layer's own normalisation
    cancels it.
    """
    layers = {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and n != "classifier"}
    sums: dict[str, list[Tensor]] = {name: [] for name in layers}

    def note(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            rows = output.transpose(0, 1).flatten(1)
            sums[name].append(torch.stack([rows.mean(1), rows.square().mean(1)]))

        return hook

    handles = [layer.register_forward_hook(note(name)) for name, layer in layers.items()]
    network.eval()
    for batch in batches:
        network.features(batch)  # type: ignore[operator]
    for handle in handles:
        handle.remove()
    add(network)
    for name, found in sums.items():
        mean, square = torch.stack(found).mean(0)
        deviation = (square - mean.square()).clamp(min=0).sqrt()
        unit = deviation.square().mean().sqrt().clamp(min=1e-12)
        normalised = network.get_submodule(name)
        assert isinstance(normalised, Normalised)
        normalised.norm.weight.copy_(deviation / unit)
        normalised.norm.bias.copy_(mean / unit)
        weight = normalised.layer.weight
        weight.mul_(math.sqrt(2 / weight[0].numel()) / weight.std().clamp(min=1e-12))
        normalised.norm.momentum = None  # None: the mean over all following batches
    network.train()
    for batch in batches:
        network.features(batch)  # type: ignore[operator]
    for module in network.modules():
        if isinstance(module, Normalised):
            module.norm.momentum = MOMENTUM


def fold(network: nn.Module) -> None:
    """Undoes `add` in place: merges each normalisation into the layer before it.

    In evaluation mode the network computes the same as before, up to rounding. Its parameters get their original names
    back.
    """
    for parent, name, layer in _children(network):
        if isinstance(layer, Normalised):
            setattr(parent, name, layer.folded())


def _children(network: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Returns (parent, name in the parent, child) for every module inside a network."""
    return [(parent, name, child) for parent in network.modules() for name, child in parent.named_children()]
