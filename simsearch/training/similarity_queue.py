"""A distillation loss: the student learns the teacher's similarities between a batch and a queue of recent pictures.

Koohpayegani, Tejankar, Pirsiavash: "CompRess", NeurIPS 2020. The similarities of a picture to thousands of other
pictures, by the student's features, give a distribution; the teacher's features give another. The loss is the
divergence between the two distributions. A single batch contains too few similar pictures, so pictures of earlier
batches are kept in a queue.

Shape letters: B batch, D width of the student's features, T width of the teacher's, Q pictures in the queue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from simsearch.training.device import product_dtype

if TYPE_CHECKING:
    from torch import Tensor


class SimilarityQueue(nn.Module):
    """Computes the loss, and stores the features of the last Q pictures: the student's (Q, D) and the teacher's (Q, T).

    The features have unit length. They are buffers of a module, so `state_dict` returns the queue for a checkpoint.
    dtype: the dtype of the queue and of its matrix products; by default, the fastest on this processor.
    """

    def __init__(
        self, size: int, student: int, teacher: int, temperature: float, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.size, self.temperature = size, temperature
        kind = dtype or product_dtype(torch.device("cpu"))
        self.register_buffer("students", torch.zeros(size, student, dtype=kind))
        self.register_buffer("teachers", torch.zeros(size, teacher, dtype=kind))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.students: Tensor
        self.teachers: Tensor
        self.seen: Tensor

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Returns the divergence KL(teacher || student), averaged over the pictures of a batch, a scalar.

        student: (B, D), with a gradient. teacher: (B, T), without a gradient. The mean of the teacher's features over
        all pictures should be 0, because a common part would make the cosines of all pairs similar.
        The distributions cover the queue and the other pictures of the batch. Call `add` with the batch only after the
        gradient has been computed, because `add` overwrites features that the gradient is computed from.
        """
        student, teacher = F.normalize(student.float(), dim=1), F.normalize(teacher.float(), dim=1)
        count = min(int(self.seen), self.size)
        near = self._nearness(student, self.students[:count]).log_softmax(1)
        target = self._nearness(teacher, self.teachers[:count]).log_softmax(1)
        loss: Tensor = F.kl_div(near, target, reduction="batchmean", log_target=True)
        return loss

    @torch.no_grad()
    def add(self, student: Tensor, teacher: Tensor) -> None:
        """Puts the features of a batch into the queue, in place of the oldest features; arguments as in `forward`."""
        places = (torch.arange(len(student), device=student.device) + self.seen) % self.size
        self.students[places] = F.normalize(student.float(), dim=1).to(self.students.dtype)
        self.teachers[places] = F.normalize(teacher.float(), dim=1).to(self.teachers.dtype)
        self.seen += len(student)

    def _nearness(self, batch: Tensor, queue: Tensor) -> Tensor:
        """Returns the cosine of each picture of the batch with all pictures of batch and queue: (B, B + Q).

        batch: (B, D) and queue: (Q, D), of unit length. The cosines are divided by the temperature. A picture's cosine
        with itself is replaced by -1e4, so that its probability is 0.
        """
        low = batch.to(queue.dtype)
        itself = torch.eye(len(batch), dtype=torch.bool, device=batch.device)
        within = (low @ low.T).float().masked_fill(itself, -1e4)
        return torch.cat([within, (low @ queue.T).float()], 1) / self.temperature
