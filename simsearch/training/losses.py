"""Losses on features, added to the loss on labels: metric learning, distillation, and equal lengths.

Shape letters: B batch, D width of the last hidden layer, T width of the teacher's features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def neighbour_loss(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Returns the supervised contrastive loss of features (B, D) with labels (B,), a scalar.

    Khosla et al., NeurIPS 2020, L_out: a softmax over each image's nearness to the other images of the batch gives a
    distribution, and the loss is the mean negative log probability of the images with the same label. Nearness is by
    Euclidean distance as in `similarity_loss`, not by cosine. Images whose label occurs once in the batch are ignored.
    """
    itself = torch.eye(len(features), dtype=torch.bool, device=features.device)
    nearness = _nearness(features, temperature).masked_fill(itself, -1e4).log_softmax(1)
    same = (labels[:, None] == labels[None, :]) & ~itself
    counts = same.sum(1)
    each = -(nearness * same).sum(1) / counts.clamp(min=1)
    loss: Tensor = each.sum() / (counts > 0).sum().clamp(min=1)
    return loss


def similarity_loss(features: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Returns the mean Kullback-Leibler divergence between the neighbourhoods of teacher and student, a scalar.

    features: (B, D), the student's. teacher: (B, T). A softmax over the similarity to the other B - 1 images of the
    batch gives each image a distribution: by cosine for the teacher, by squared Euclidean distance in units of the mean
    squared norm for the student (for vectors of equal length the two agree).
    """
    student = _nearness(features, temperature)
    unit = F.normalize(teacher.float(), dim=1)
    target = unit @ unit.T / temperature
    itself = torch.eye(len(features), dtype=torch.bool, device=features.device)
    student, target = student.masked_fill(itself, -1e4), target.masked_fill(itself, -1e4)
    loss: Tensor = F.kl_div(student.log_softmax(1), target.log_softmax(1), reduction="batchmean", log_target=True)
    return loss


def length_loss(features: Tensor) -> Tensor:
    """Returns the relative variance of the lengths of features (B, D), a scalar.

    With equal lengths, Euclidean distance ranks images as the cosine does, which does not depend on contrast.
    """
    lengths = features.float().norm(dim=1)
    variation: Tensor = lengths.var() / lengths.mean().square().clamp(min=1e-6)
    return variation


def peak_loss(features: Tensor) -> Tensor:
    """Returns the mean of E[x^4] / E[x^2]^2 over the rows of features (B, D), a scalar of at least 1.

    The loss is large if a few values dominate a row; their squared differences then outweigh all others in a Euclidean
    distance.
    """
    squares = features.float().square()
    peaks: Tensor = (squares.square().mean(1) / squares.mean(1).square().clamp(min=1e-12)).mean()
    return peaks


def _nearness(features: Tensor, temperature: float) -> Tensor:
    """Returns minus half the squared Euclidean distances, in units of the mean squared norm, / temperature: (B, B).

    The gradient also flows through the mean; if the mean were a constant, a loss could shrink all features to zero.
    """
    features = features.float()
    squared = features.square().sum(1)
    distances = squared[:, None] + squared[None, :] - 2 * features @ features.T
    return -distances / (2 * squared.mean().clamp(min=1e-6)) / temperature
