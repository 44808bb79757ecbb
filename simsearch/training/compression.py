"""Compresses a network while it trains: first pruning, then weight sharing, each followed by more training.

Pruning sets the weights of smallest magnitude in a layer to zero. Sharing puts the other weights of a layer into groups
and gives all weights of a group one value.
Han, Mao, Dally: "Deep Compression", ICLR 2016 (pruning, section 2; sharing, section 3). The fraction of weights kept
falls by the cubic schedule of Zhu & Gupta, "To prune, or not to prune", 2017.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from simsearch.models.deep_compression import k_means

if TYPE_CHECKING:
    from torch import Tensor, nn

    from simsearch.training.config import TrainConfig

BITS = {"conv": 8, "hidden": 5, "classifier": 6}
"""For each part of the network, the bits that a weight's group number takes; with b bits, a layer has 2^b - 1 groups.

Han et al. use 8 bits in convolutions and 5 in linear layers.
"""

EVERY = 8
"""Steps between two rounds of sharing; in between, the weights of a group may become different."""


class Group(NamedTuple):
    """The shared weights of one layer.

    mask: bool, in the shape of the layer's weights, True for the n weights that were not pruned.
    which: (n,) uint8, for each of the n weights, the number of its group.
    counts: (groups,) int, the number of weights in each group. It is 1 for an empty group, because sums are divided by
    these numbers.
    """

    mask: Tensor
    which: Tensor
    counts: Tensor


def compressed(name: str) -> bool:
    """Returns True if a parameter is pruned and shared: the weights of all layers except the first are, biases are not.

    The weights of the first layer are few and important.
    """
    return name.endswith("weight") and name != "conv.0.weight" and name.split(".")[0] in BITS


class Compressor:
    """Sets a growing fraction of each layer's weights to zero, and later makes groups of weights share a value."""

    def __init__(self, network: nn.Module, config: TrainConfig) -> None:
        self.config = config
        keep = {"conv": config.keep_convolution, "hidden": config.keep_hidden, "classifier": config.keep_classifier}
        self.parameters = {name: p for name, p in network.named_parameters() if compressed(name)}
        self.final = {name: keep[name.split(".")[0]] for name in self.parameters}
        self.masks: dict[str, Tensor] = {}
        self.groups: dict[str, Group] = {}

    @torch.no_grad()
    def after(self, step: int, steps: int) -> None:
        """Prunes and shares the weights after optimizer step number `step` of `steps`.

        The weights to keep are chosen about 100 times in a training, until sharing begins. All other weights are set to
        zero after every step.
        """
        progress = step / steps
        if not self.groups and (step % max(1, steps // 100) == 0 or not self.masks):
            self._choose(progress)
        for name, mask in self.masks.items():
            self.parameters[name].mul_(mask)
        if self.config.share_from < 1 and progress >= self.config.share_from:
            if not self.groups:
                self._group()
            if step % EVERY == 0 or step + 1 >= steps:
                self._share()

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Returns tensors to store in a checkpoint: which weights are kept, and the group of each kept weight."""
        return {"masks": dict(self.masks), "which": {name: group.which for name, group in self.groups.items()}}

    def restore(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Restores the choice of weights and their groups from the result of `state`."""
        self.masks = {name: mask.to(self.parameters[name].device) for name, mask in state["masks"].items()}
        for name, which in state["which"].items():
            self.groups[name] = self._of(name, which.to(self.parameters[name].device))

    def _choose(self, progress: float) -> None:
        """Chooses the weights to keep: those of largest magnitude in each layer, as many as the schedule says.

        progress: the finished fraction of the training.
        """
        span = max(self.config.prune_until - self.config.prune_from, 1e-9)
        done = min(1.0, (progress - self.config.prune_from) / span)
        for name, final in self.final.items():
            if done <= 0 or final >= 1:
                continue
            weight = self.parameters[name]
            keep = final + (1 - final) * (1 - done) ** 3
            count = max(1, round(keep * weight.numel()))
            threshold = weight.abs().flatten().kthvalue(weight.numel() - count + 1).values
            self.masks[name] = weight.abs() >= threshold

    def _group(self) -> None:
        """Puts each kept weight of a layer into the group whose value, found by k-means, is nearest."""
        for name, weight in self.parameters.items():
            kept = weight[self._mask(name)].contiguous()
            centres = torch.from_numpy(k_means(kept.float().cpu().numpy(), 2 ** BITS[name.split(".")[0]] - 1))
            centres = centres.to(weight.device)
            which = torch.searchsorted((centres[1:] + centres[:-1]) / 2, kept).to(torch.uint8)
            self.groups[name] = self._of(name, which)

    def _mask(self, name: str) -> Tensor:
        mask = self.masks.get(name)
        return torch.ones_like(self.parameters[name], dtype=torch.bool) if mask is None else mask

    def _of(self, name: str, which: Tensor) -> Group:
        values = 2 ** BITS[name.split(".")[0]] - 1
        return Group(self._mask(name), which, torch.bincount(which.int(), minlength=values).clamp(min=1))

    def _share(self) -> None:
        """Sets every kept weight to the mean of its group, which becomes the group's shared value.

        Gradient steps since the last call have changed the weights of a group, and so their mean.
        """
        for name, group in self.groups.items():
            weight, which = self.parameters[name], group.which.int()
            sums = torch.bincount(which, weights=weight[group.mask].double(), minlength=len(group.counts))
            weight[group.mask] = (sums / group.counts).to(weight.dtype)[which]
