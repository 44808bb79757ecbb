"""Communication between the processes of one training, by torch.distributed."""

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
"""Timeout of a collective operation: all other processes wait while the first decodes images or writes weights."""


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together. rank: number of this process, from 0. size: number of processes."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: torch.device) -> ProcessGroup:
        """Joins the processes that torchrun has started; without torchrun, returns a group of one process."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        if not distributed.is_initialized():
            cuda = device.type == "cuda"
            distributed.init_process_group(
                "nccl" if cuda else "gloo", timeout=PATIENCE, device_id=device if cuda else None
            )
        return cls(distributed.get_rank(), distributed.get_world_size())

    def total(self, numbers: Tensor) -> Tensor:
        """Sums a tensor over all processes, in place, and returns it."""
        if self.size > 1:
            distributed.all_reduce(numbers)
        return numbers

    def any(self, flag: bool, device: torch.device) -> bool:
        """Returns True if the flag is True in any process."""
        return bool(self.total(torch.tensor(float(flag), device=device))) if self.size > 1 else flag

    def gather(self, rows: Tensor) -> Tensor:
        """Joins the rows (b, ...) of all processes, in the order of their ranks, into (b * size, ...).

        Gradients flow back to each process.
        """
        if self.size == 1:
            return rows
        gathered: Tensor = _Gather.apply(rows)
        return gathered

    def wait(self) -> None:
        """Waits until all processes have called this."""
        if self.size > 1:
            distributed.barrier()

    def leave(self) -> None:
        """Waits for all processes, then closes the connections.

        With NCCL, no process may exit before the others are done.
        """
        if self.size > 1:
            distributed.barrier()
            distributed.destroy_process_group()


class _Gather(torch.autograd.Function):
    """Gathers rows from all processes; in the backward pass, a row's gradient is the sum over all processes.

    All processes compute the same loss from all rows, so this sum is too large by a factor equal to the number of
    processes. DistributedDataParallel then averages the gradients of the weights over the processes, which divides them
    by this number.
    The result equals the gradients that a single process would compute from the whole batch.
    """

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
