"""The losses of training agree with their definitions."""

import math

import pytest
import torch

from simsearch.training.losses import neighbour_loss, peak_loss, similarity_loss


def test_similarity_loss_is_zero_on_agreement():
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize(torch.rand(20, 8), dim=1)
    assert similarity_loss(unit, unit, 0.1).item() == pytest.approx(0, abs=1e-5)
    assert similarity_loss(unit, unit.flip(0), 0.1).item() > 0.1


def test_neighbour_loss_is_small_if_labels_apart():
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2])  # the last is alone and does not count
    apart = torch.eye(3)[labels] + 0.01 * torch.rand(7, 3)
    assert neighbour_loss(apart, labels, 0.1).item() == pytest.approx(math.log(2), abs=0.02)
    assert neighbour_loss(apart, labels.flip(0), 0.1).item() > 2
    assert neighbour_loss(5 * apart, labels, 0.1).item() == pytest.approx(
        neighbour_loss(apart, labels, 0.1).item(), rel=1e-4
    )  # no unit of length
    alone = torch.rand(3, 4, requires_grad=True)
    assert neighbour_loss(alone, torch.arange(3), 0.1).item() == 0
    neighbour_loss(alone, torch.arange(3), 0.1).backward()
    assert alone.grad is not None and not alone.grad.any()


def test_neighbour_loss_matches_contrastive():
    """Khosla et al. 2020, equation 2, image by image; of unit vectors, squared distance is two minus twice the cosine."""
    torch.manual_seed(0)
    z = torch.nn.functional.normalize(torch.rand(20, 16), dim=1)
    labels = torch.randint(0, 5, (20,))
    terms = []
    for i in range(20):
        others = [a for a in range(20) if a != i]
        total = sum(math.exp(float(z[i] @ z[a]) / 0.2) for a in others)
        positive = [math.log(math.exp(float(z[i] @ z[p]) / 0.2) / total) for p in others if labels[p] == labels[i]]
        terms += [-sum(positive) / len(positive)] if positive else []
    expected = sum(terms) / len(terms)
    assert neighbour_loss(z, labels, 0.2).item() == pytest.approx(expected, rel=1e-4)


def test_peaks_are_those_of_the_definition():
    even, single = torch.ones(2, 50), torch.eye(50)
    assert peak_loss(even).item() == pytest.approx(1)
    assert peak_loss(7 * single).item() == pytest.approx(50)
    x = torch.rand(3, 50, generator=torch.Generator().manual_seed(0), requires_grad=True)
    peak_loss(x).backward()
    assert x.grad is not None
    assert peak_loss(x - x.grad).item() < peak_loss(x).item()
    assert peak_loss(torch.zeros(2, 50)).isfinite()
