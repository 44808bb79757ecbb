"""Losses on features, beside the one on labels: like a teacher's, near those of the same label, of equal lengths.

Shape letters: B batch, D width of the last hidden layer, T width of the teacher's features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def neighbour_loss(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """How far features (B, D) are from having those of their label as nearest neighbours: a scalar.

    Supervised contrastive learning (Khosla et al., NeurIPS 2020, L_out): each image gives a distribution over the
    others of the batch, and the loss is the mean negative logarithm of what those of its label (B,) get. By Euclidean
    distance as in `similarity_loss`, not by the cosine. Images that are alone with their label do not count.
    """
    itself = torch.eye(len(features), dtype=torch.bool, device=features.device)
    nearness = _nearness(features, temperature).masked_fill(itself, -1e4).log_softmax(1)
    same = (labels[:, None] == labels[None, :]) & ~itself
    counts = same.sum(1)
    each = -(nearness * same).sum(1) / counts.clamp(min=1)
    loss: Tensor = each.sum() / (counts > 0).sum().clamp(min=1)
    return loss


def similarity_loss(features: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """How far the student's neighbourhoods are from the teacher's: a scalar.

    features (B, D) and teacher (B, T) each give, for every image, a distribution over the other B - 1 images of the
    batch: the teacher's by cosine, the student's by squared Euclidean distance in units of the mean squared norm
    (for vectors of equal length the two agree). The loss is the mean Kullback-Leibler divergence.
    """
    student = _nearness(features, temperature)
    unit = F.normalize(teacher.float(), dim=1)
    target = unit @ unit.T / temperature
    itself = torch.eye(len(features), dtype=torch.bool, device=features.device)
    student, target = student.masked_fill(itself, -1e4), target.masked_fill(itself, -1e4)
    loss: Tensor = F.kl_div(student.log_softmax(1), target.log_softmax(1), reduction="batchmean", log_target=True)
    return loss


def length_loss(features: Tensor) -> Tensor:
    """The relative variance of the lengths of (B, D) features: 0 where all are as long, so that Euclidean
    distance orders pictures as the cosine does, which knows nothing of contrast."""
    lengths = features.float().norm(dim=1)
    variation: Tensor = lengths.var() / lengths.mean().square().clamp(min=1e-6)
    return variation


def _nearness(features: Tensor, temperature: float) -> Tensor:
    """(B, D) to (B, B): minus half the squared Euclidean distances, in units of the mean squared norm, / temperature.

    The unit is part of the gradient: held constant, it would let a loss shrink all features to nothing.
    """
    features = features.float()
    squared = features.square().sum(1)
    distances = squared[:, None] + squared[None, :] - 2 * features @ features.T
    return -distances / (2 * squared.mean().clamp(min=1e-6)) / temperature
