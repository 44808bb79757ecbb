"""Batch normalisation while training, folded into the weights afterwards.

Ioffe, Szegedy: "Batch Normalization", ICML 2015. A normalisation after each convolution and each hidden linear layer,
before its ReLU, makes the loss bear a hundred times the learning rate. At inference it is an affine map of each
channel, and so is the layer before it: `fold` makes one of the two, and the network is again the one of 2012.
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
"""How fast the running statistics follow the batches: over the last thirty or so."""


class Normalised(nn.Module):
    """A layer without bias and the normalisation of its output: (B, C, ...) to (B, D, ...)."""

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        width = layer.weight.shape[0]
        self.layer = layer
        self.layer.bias = None  # the normalisation has one
        kind = nn.BatchNorm2d if isinstance(layer, nn.Conv2d) else nn.BatchNorm1d
        self.norm = kind(width, momentum=MOMENTUM)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.norm(self.layer(x))
        return output

    @torch.no_grad()
    def folded(self) -> nn.Conv2d | nn.Linear:
        """The layer, its weights and bias now doing the work of both, by the running statistics."""
        norm, layer = self.norm, self.layer
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
        layer.bias = nn.Parameter(norm.bias - norm.running_mean * scale)
        return layer


def add(network: nn.Module) -> None:
    """Puts a normalisation after every convolution and linear layer but the classifier, in place.

    Their biases are dropped. Names of parameters change: `conv.0.weight` becomes `conv.0.layer.weight`.
    """
    for parent, name, layer in _children(network):
        if isinstance(layer, nn.Conv2d | nn.Linear) and not isinstance(parent, Normalised) and name != "classifier":
            setattr(parent, name, Normalised(layer))


@torch.no_grad()
def adopt(network: nn.Module, batches: Sequence[Tensor]) -> None:
    """`add` for a network that was trained without: its function stays nearly what it is.

    batches: some of (B, 3, S, S). Each layer's outputs keep their proportions from channel to channel, in units of
    their deviation over the layer, which the next normalisation takes out again; only response normalisation notices.
    The weights of each layer are scaled to deviation sqrt(2 / fan in), which sets how far a step of a given rate goes.
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
        normalised.norm.momentum = None  # the mean over all batches that follow
    network.train()
    for batch in batches:
        network.features(batch)  # type: ignore[operator]
    for module in network.modules():
        if isinstance(module, Normalised):
            module.norm.momentum = MOMENTUM


def fold(network: nn.Module) -> None:
    """Undoes `add` in place: the same function as in evaluation mode to rounding, and the names of before."""
    for parent, name, layer in _children(network):
        if isinstance(layer, Normalised):
            setattr(parent, name, layer.folded())


def _children(network: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Every module with its parent and its name there."""
    return [(parent, name, child) for parent in network.modules() for name, child in parent.named_children()]
