"""The processes that train together, by torch.distributed: what they add up, share, and wait for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

if TYPE_CHECKING:
    from torch import Tensor

PATIENCE = timedelta(days=1)
"""For which processes wait for each other: the first one decodes all pictures and publishes the weights alone."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together; `rank` is this one's number."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: torch.device) -> ProcessGroup:
        """The world that torchrun describes in the environment, or one of a single process."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        if not distributed.is_initialized():
            cuda = device.type == "cuda"
            distributed.init_process_group(
                "nccl" if cuda else "gloo", timeout=PATIENCE, device_id=device if cuda else None
            )
        return cls(distributed.get_rank(), distributed.get_world_size())

    def total(self, numbers: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            distributed.all_reduce(numbers)
        return numbers

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is up in any process."""
        return bool(self.total(torch.tensor(float(flag), device=device))) if self.size > 1 else flag

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows (b, ...) of all processes, in the order of their ranks: (b * size, ...); gradients find back."""
        if self.size == 1:
            return rows
        found: Tensor = _Gathered.apply(rows)
        return found

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            distributed.barrier()

    def leave(self) -> None:
        """Once all processes are here, ends what connects them: NCCL wants no process to exit before."""
        if self.size > 1:
            distributed.barrier()
            distributed.destroy_process_group()


class _Gathered(torch.autograd.Function):
    """The gradient of a row is the sum of what all processes make of it; averaged over them, as gradients of weights
    are, that of one process which has the whole batch."""

    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(gradient)
        return gradient.chunk(distributed.get_world_size())[distributed.get_rank()]
