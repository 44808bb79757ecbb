"""AlexNet's local response normalisation for training on a CPU: the same function, with a gradient that costs less.

Krizhevsky et al. 2012, section 3.3. The sums over adjacent channels are a product with a band matrix of ones, for which
processors have instructions, in place of shifted copies. The gradient is written out, and needs one such product too.
Without these, a training in bfloat16 on a CPU spends more than half of its time in the gradient of two normalisations.

Shape letters: B images in a batch, C channels, H height, W width, R = B * H * W rows.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from simsearch.models.networks.alexnet import LocalResponseNorm, local_response_norm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    Function = Callable[..., Tensor]

ADJACENT, K, ALPHA, BETA = 5, 2.0, 1e-4, 0.75
"""The paper's constants, as in `local_response_norm`."""


def _band(like: Tensor) -> Tensor:
    """Returns the matrix (C, C) of 1 where two channels are adjacent, else 0, for rows `like` (R, C)."""
    channel = torch.arange(like.shape[1], device=like.device)
    return ((channel[:, None] - channel).abs() <= ADJACENT // 2).to(like.dtype)


def _wide(x: Tensor) -> Tensor:
    return x.double() if x.dtype == torch.float64 else x.float()


def _square(x: Tensor) -> Tensor:
    return x * x


def _output(x: Tensor, energy: Tensor) -> Tensor:
    root = (K + ALPHA * _wide(energy)).rsqrt()
    return (_wide(x) * root * root.sqrt()).to(x.dtype)


def _before_sum(gradient: Tensor, x: Tensor, energy: Tensor) -> Tensor:
    root = (K + ALPHA * _wide(energy)).rsqrt()
    return (_wide(gradient) * _wide(x) * root.pow(3) * root.sqrt()).to(x.dtype)


def _after_sum(gradient: Tensor, x: Tensor, energy: Tensor, total: Tensor) -> Tensor:
    root = (K + ALPHA * _wide(energy)).rsqrt()
    change = _wide(gradient) * root * root.sqrt() - 2 * ALPHA * BETA * _wide(x) * _wide(total)
    return change.to(x.dtype)


PARTS: tuple[Function, ...] = (_square, _output, _before_sum, _after_sum)


@functools.cache
def _compiled(compile_part: Callable[..., Function]) -> tuple[Function, ...]:
    """Returns `PARTS` compiled: once for all layers, because each call of torch.compile would compile them again."""
    return tuple(compile_part(part, dynamic=False) for part in PARTS)


def _rows(x: Tensor) -> Tensor:
    """Returns (B, C, H, W) as (R, C), without a copy if channels are stored last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _images(rows: Tensor, like: Tensor) -> Tensor:
    """Undoes `_rows`; `like` has the shape (B, C, H, W) of the result."""
    images, channels, height, width = like.shape
    return rows.view(images, height, width, channels).permute(0, 3, 1, 2)


class _ResponseNorm(torch.autograd.Function):
    """The function and its gradient; `parts` are the four functions above, compiled or not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parts: tuple[Function, ...]) -> Tensor:
        rows = _rows(x)
        energy = parts[0](rows) @ _band(rows)
        ctx.save_for_backward(x, energy)
        ctx.parts = parts
        return _images(parts[1](rows, energy), x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        x, energy = ctx.saved_tensors
        rows, gradient = _rows(x), _rows(gradients[0].to(x.dtype))
        total = ctx.parts[2](gradient, rows, energy) @ _band(rows)
        return _images(ctx.parts[3](gradient, rows, energy, total), x), None


class FastResponseNorm(nn.Module):
    """Local response normalisation with the paper's constants: (B, C, H, W) floating point to the same.

    It is fast where channels are stored last, and if it is compiled. Without gradients it is `local_response_norm`.
    """

    def __init__(self, compiled: bool = True) -> None:
        """compiled: fuses the operations on single values by torch.compile, which needs a C++ compiler."""
        super().__init__()
        self.parts = _compiled(torch.compile) if compiled else PARTS

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return local_response_norm(x)
        output: Tensor = _ResponseNorm.apply(x, self.parts)
        return output


def make_fast(network: nn.Module, compiled: bool = True) -> bool:
    """Replaces every `LocalResponseNorm` of a network by `FastResponseNorm`, in place; neither has parameters.

    Returns True if there was one.
    """
    return _replace(network, LocalResponseNorm, lambda: FastResponseNorm(compiled))


def make_plain(network: nn.Module) -> None:
    """Undoes `make_fast`."""
    _replace(network, FastResponseNorm, LocalResponseNorm)


@contextlib.contextmanager
def plain_afterwards(network: nn.Module) -> Iterator[None]:
    """Undoes `make_fast` at the end of the block, also after an error."""
    try:
        yield
    finally:
        make_plain(network)


def _replace(network: nn.Module, kind: type[nn.Module], make: Callable[[], nn.Module]) -> bool:
    found = [(parent, name) for parent in network.modules() for name, c in parent.named_children() if type(c) is kind]
    for parent, name in found:
        setattr(parent, name, make())
    return bool(found)
