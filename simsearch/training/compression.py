"""Compresses a network while it trains: first pruning, then weight sharing, each followed by more training.

Han, Mao, Dally: "Deep Compression", ICLR 2016 (pruning, section 2; trained sharing, section 3). The fraction
of weights kept falls along the cubic of Zhu & Gupta, "To prune, or not to prune", 2017.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from simsearch.models.deep_compression import k_means

if TYPE_CHECKING:
    from torch import Tensor, nn

    from simsearch.training.config import TrainConfig

BITS = {"conv": 8, "hidden": 5, "classifier": 6}
"""Bits of the shared weights by part of the network. Han et al. use 8 in convolutions and 5 in linear layers."""

EVERY = 8
"""Steps between two rounds of sharing; in between, the weights of a group may drift apart."""


class Group(NamedTuple):
    """The shared weights of one tensor.

    mask: bool in the tensor's shape, true for the n weights kept. which: (n,) uint8, the index of each weight's shared
    value. counts: (values,) int, number of weights with each value, at least 1.
    """

    mask: Tensor
    which: Tensor
    counts: Tensor


def compressed(name: str) -> bool:
    """Returns true for parameters to prune and share: all weights but the few, important ones of the first layer."""
    return name.endswith("weight") and name != "conv.0.weight" and name.split(".")[0] in BITS


class Compressor:
    """Sets a growing fraction of each tensor to zero, smallest weights first; later, makes groups share a value."""

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

        The masks are chosen 100 times in a training; the weights they exclude are set to zero after every step.
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
        """Returns the masks, and the index of each weight's shared value, for a checkpoint."""
        return {"masks": dict(self.masks), "which": {name: group.which for name, group in self.groups.items()}}

    def restore(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Continues from what `state` returned."""
        self.masks = {name: mask.to(self.parameters[name].device) for name, mask in state["masks"].items()}
        for name, which in state["which"].items():
            self.groups[name] = self._of(name, which.to(self.parameters[name].device))

    def _choose(self, progress: float) -> None:
        """Chooses the masks: the largest weights of each tensor, as many as the schedule keeps at this progress."""
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
        """Assigns each weight kept to the nearest of the values that k-means finds for its tensor."""
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
        """Sets every weight to the mean of its group, so that gradient steps move the shared values."""
        for name, group in self.groups.items():
            weight, which = self.parameters[name], group.which.int()
            sums = torch.bincount(which, weights=weight[group.mask].double(), minlength=len(group.counts))
            weight[group.mask] = (sums / group.counts).to(weight.dtype)[which]
