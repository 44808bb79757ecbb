"""An optimizer for convolution kernels that changes a kernel equally fast in all directions.

Jordan et al.: "Muon: An optimizer for hidden layers", 2024. A kernel's momentum, seen as a matrix, is made orthogonal
before it is applied. So directions with rare gradients are learned as fast as others. An orthogonal matrix is usually
computed by singular value decomposition; here a polynomial is applied a few times instead (Newton-Schulz iteration).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from simsearch.training.device import product_dtype

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

POLYNOMIAL = (3.4445, -4.7750, 2.0315)
"""Coefficients of x, x^3 and x^5 in the polynomial that is applied to the singular values.

Five rounds bring any singular value between 0.001 and 1 into the range 0.7 to 1.2 (Jordan).
"""


def orthogonalise(matrix: Tensor, rounds: int = 5) -> Tensor:
    """Returns an (M, N) matrix with the singular vectors of `matrix` (M, N) and singular values near 1.

    The result is bfloat16 if the device has instructions for bfloat16, or else float32.
    rounds: how often the polynomial is applied.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x: Tensor = (wide / (wide.norm() + 1e-12)).to(product_dtype(matrix.device))
    a, b, c = POLYNOMIAL
    for _ in range(rounds):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


class OrthogonalMomentum:
    """Changes kernels by a fraction of their norm in each step, and keeps their norm constant.

    It is meant for kernels (C, D, H, W) of layers whose output is normalised, so that the norm of a kernel has no
    effect.
    """

    def __init__(self, kernels: Iterable[Tensor], share: float, momentum: float = 0.95) -> None:
        """Takes the kernels to train; `share` is the size of a step at rate 1, as a fraction of a kernel's norm."""
        self.kernels, self.share, self.momentum = list(kernels), share, momentum
        self.moments = [torch.zeros_like(kernel) for kernel in self.kernels]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Updates the kernels, then removes their gradients, so that no other optimizer applies them.

        rate: the learning rate.
        """
        for kernel, moment in zip(self.kernels, self.moments, strict=True):
            assert kernel.grad is not None
            moment.mul_(self.momentum).add_(kernel.grad)
            ahead = kernel.grad.add(moment, alpha=self.momentum)  # Nesterov
            move = orthogonalise(ahead.flatten(1)).float().reshape(kernel.shape)
            length = kernel.norm()
            kernel.add_(move * (length / move.norm().clamp(min=1e-12)), alpha=-rate * self.share)
            kernel.mul_(length / kernel.norm())
            kernel.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Returns the momentum of each kernel, for a checkpoint."""
        return {"moments": self.moments}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the momentum from the result of `state_dict`."""
        for moment, saved in zip(self.moments, state["moments"], strict=True):
            moment.copy_(saved)
