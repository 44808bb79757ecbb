"""Losses on features, which are added to the loss on labels: metric learning, distillation and regularisation.

Shape letters: B batch, D width of the last hidden layer, T width of the teacher's features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def neighbour_loss(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Returns the supervised contrastive loss of features (B, D) with labels (B,), a scalar.

    A softmax over each image's nearness to the other images of the batch gives a distribution. The loss is the mean
    negative log probability of the images with the same label (Khosla et al., NeurIPS 2020, L_out).
    Nearness is by Euclidean distance as in `similarity_loss`, not by cosine. An image whose label occurs only once in
    the batch is ignored.
    """
    itself = torch.eye(len(features), dtype=torch.bool, device=features.device)
    nearness = _nearness(features, temperature).masked_fill(itself, -1e4).log_softmax(1)
    same = (labels[:, None] == labels[None, :]) & ~itself
    counts = same.sum(1)
    each = -(nearness * same).sum(1) / counts.clamp(min=1)
    loss: Tensor = each.sum() / (counts > 0).sum().clamp(min=1)
    return loss


def similarity_loss(features: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Returns KL(teacher || student) of the similarities between images, averaged over the batch, a scalar.

    features: (B, D), the student's. teacher: (B, T).
    Each image has two distributions over the other B - 1 images of the batch. Each distribution is a softmax over
    similarities divided by the temperature. The teacher's similarity is the cosine. The student's similarity is minus
    half the squared Euclidean distance, in units of the mean squared norm. For features of equal length, this gives the
    same distribution as the cosine.
    """
    student = _nearness(features, temperature)
    unit = F.normalize(teacher.float(), dim=1)
    target = unit @ unit.T / temperature
    itself = torch.eye(len(features), dtype=torch.bool, device=features.device)
    student, target = student.masked_fill(itself, -1e4), target.masked_fill(itself, -1e4)
    loss: Tensor = F.kl_div(student.log_softmax(1), target.log_softmax(1), reduction="batchmean", log_target=True)
    return loss


def length_loss(features: Tensor) -> Tensor:
    """Returns the variance of the lengths of features (B, D), divided by the squared mean length: a scalar.

    If all features have the same length, Euclidean distances rank images as the cosine does. This is an advantage,
    because the length of an image's features depends on its contrast, which should not affect the ranking.
    """
    lengths = features.float().norm(dim=1)
    variation: Tensor = lengths.var() / lengths.mean().square().clamp(min=1e-6)
    return variation


def peak_loss(features: Tensor) -> Tensor:
    """Returns the mean of E[x^4] / E[x^2]^2 over the rows of features (B, D), a scalar of at least 1.

    The loss is large if a few values of a row are much larger than the others. Euclidean distances would then depend
    almost only on these few values.
    """
    squares = features.float().square()
    peaks: Tensor = (squares.square().mean(1) / squares.mean(1).square().clamp(min=1e-12)).mean()
    return peaks


def _nearness(features: Tensor, temperature: float) -> Tensor:
    """Returns the nearness of each pair of images: (B, B), higher for smaller Euclidean distances.

    It is minus half the squared distance, in units of the mean squared norm, divided by the temperature. Gradients
    also flow through this mean, because a loss could otherwise shrink all features to zero.
    """
    features = features.float()
    squared = features.square().sum(1)
    distances = squared[:, None] + squared[None, :] - 2 * features @ features.T
    return -distances / (2 * squared.mean().clamp(min=1e-6)) / temperature
