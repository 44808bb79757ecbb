"""Learning which pictures are alike from a teacher, over a queue of the pictures seen last.

Koohpayegani, Tejankar, Pirsiavash: "CompRess", NeurIPS 2020: for each picture, student and teacher each give a
distribution over thousands of others by likeness, and the student's is to be the teacher's. A batch alone holds too
few pictures that are anything like each other.

Shape letters: B batch, D width of the student's features, T width of the teacher's, Q pictures in the queue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class SimilarityQueue(nn.Module):
    """The features of the last Q pictures by student (Q, D) and teacher (Q, T), of unit length, and the loss.

    A module so that a checkpoint can hold its state. The features are kept as bfloat16, whose products are quick.
    """

    def __init__(self, size: int, student: int, teacher: int, temperature: float) -> None:
        super().__init__()
        self.size, self.temperature = size, temperature
        self.register_buffer("students", torch.zeros(size, student, dtype=torch.bfloat16))
        self.register_buffer("teachers", torch.zeros(size, teacher, dtype=torch.bfloat16))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.students: Tensor
        self.teachers: Tensor
        self.seen: Tensor

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The mean Kullback-Leibler divergence over a batch, a scalar.

        student (B, D) needs a gradient, teacher (B, T) does not and should have mean 0 over all pictures. The others
        of the batch count as well as the queue. `add` the batch once the gradient has been computed.
        """
        student, teacher = F.normalize(student.float(), dim=1), F.normalize(teacher.float(), dim=1)
        count = min(int(self.seen), self.size)
        near = self._nearness(student, self.students[:count]).log_softmax(1)
        target = self._nearness(teacher, self.teachers[:count]).log_softmax(1)
        loss: Tensor = F.kl_div(near, target, reduction="batchmean", log_target=True)
        return loss

    @torch.no_grad()
    def add(self, student: Tensor, teacher: Tensor) -> None:
        """Puts a batch, as `forward` takes it, in the place of the oldest pictures."""
        places = (torch.arange(len(student), device=student.device) + self.seen) % self.size
        self.students[places] = F.normalize(student.float(), dim=1).bfloat16()
        self.teachers[places] = F.normalize(teacher.float(), dim=1).bfloat16()
        self.seen += len(student)

    def _nearness(self, batch: Tensor, queue: Tensor) -> Tensor:
        """(B, D) and (Q, D) to (B, B + Q): cosines / temperature, and next to nothing for a picture itself."""
        low = batch.bfloat16()
        itself = torch.eye(len(batch), dtype=torch.bool, device=batch.device)
        within = (low @ low.T).float().masked_fill(itself, -1e4)
        return torch.cat([within, (low @ queue.T).float()], 1) / self.temperature
