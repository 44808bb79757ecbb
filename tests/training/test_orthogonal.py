"""Momentum made orthogonal, for the kernels of convolutions."""

import pytest
import torch

from simsearch.training import device
from simsearch.training.orthogonal import OrthogonalMomentum, orthogonalise


@pytest.mark.parametrize("bf16", [True, False])
def test_singular_values_come_near_one(bf16, monkeypatch):
    monkeypatch.setattr(device, "has_bf16", lambda _: bf16)
    assert orthogonalise(torch.eye(2)).dtype == (torch.bfloat16 if bf16 else torch.float32)
    torch.manual_seed(0)
    for rows, columns in ((12, 40), (40, 12)):
        matrix = torch.randn(rows, columns) * torch.logspace(0, -1.5, columns)
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        near = orthogonalise(matrix).float()
        found = torch.linalg.svdvals(near)
        assert s[0] / s[-1] > 5
        assert found.min() > 0.5 and found.max() < 1.4
        diagonal = (u.T @ near @ v.T).diagonal()
        assert (diagonal > 0.4).all()  # the same singular vectors


def test_a_step_goes_down_and_keeps_the_length():
    torch.manual_seed(0)
    kernel = torch.nn.Parameter(torch.randn(8, 3, 3, 3))
    goal = torch.nn.functional.normalize(torch.randn(8, 3, 3, 3).flatten(), dim=0)
    length = kernel.norm().item()
    optimizer = OrthogonalMomentum([kernel], share=0.5)
    losses = []
    for _ in range(30):
        loss = -(kernel.flatten() @ goal) / kernel.norm()
        loss.backward()
        losses.append(loss.item())
        optimizer.step(0.1)
        assert kernel.grad is None
    assert losses[-1] < losses[0] - 0.3
    assert abs(kernel.norm().item() - length) < 1e-3 * length


def test_state_is_restored():
    kernels = [torch.nn.Parameter(torch.randn(4, 2, 3, 3)) for _ in range(2)]
    optimizer, other = (OrthogonalMomentum(kernels, share=0.1) for _ in range(2))
    for kernel in kernels:
        kernel.grad = torch.randn_like(kernel)
    optimizer.step(0.1)
    other.load_state_dict(optimizer.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(optimizer.moments, other.moments, strict=True))
