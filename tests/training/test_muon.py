"""Muon: its matrices move orthogonally, its vectors as with AdamW, and it descends where AdamW is slow."""

import pytest
import torch
from torch import nn

from baton_diffusers.training.muon import UPDATE_RMS, Muon, orthogonal


@pytest.mark.parametrize("shape", [(6, 6), (4, 30), (30, 4)])
def test_singular_values_become_alike_and_vectors_stay(shape):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, min(shape), generator=generator))[0] for n in shape)
    values = torch.logspace(0, -2, min(shape))
    result = left.T @ orthogonal(1e-4 * left @ values.diag() @ right.T) @ right
    assert (0.6 < result.diagonal()).all() and (result.diagonal() < 1.3).all()
    torch.testing.assert_close(result, result.diagonal().diag(), atol=1e-3, rtol=0)


def test_no_gradient_moves_nothing_and_zero_is_no_direction():
    still, moved = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    optimizer = Muon([still, moved], lr=0.1, weight_decay=0.0)
    moved.grad = torch.zeros(3, 3)
    optimizer.step()
    assert torch.equal(still, torch.ones(3, 3)) and torch.equal(moved, torch.ones(3, 3))


def test_vectors_move_as_with_adamw_and_decay_is_decoupled():
    start = torch.linspace(-1, 1, 5)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    matrix = nn.Parameter(torch.eye(5))
    settings = {"lr": 0.03, "betas": (0.8, 0.9), "weight_decay": 0.5}
    muon, adamw = Muon([ours, matrix], **settings), torch.optim.AdamW([theirs], **settings)
    for step in range(4):
        for vector in (ours, theirs):
            vector.grad = (step + vector.detach()).cos()
        matrix.grad = torch.zeros(5, 5)
        muon.step()
        adamw.step()
    assert torch.equal(ours, theirs)
    torch.testing.assert_close(matrix.detach(), (1 - 0.03 * 0.5) ** 4 * torch.eye(5))


def test_a_convolution_moves_like_its_flattened_matrix():
    generator = torch.Generator().manual_seed(0)
    start, gradient = torch.randn(2, 8, 4, 3, generator=generator)
    kernel, matrix = nn.Parameter(start.clone()), nn.Parameter(start.flatten(1).clone())
    optimizer = Muon([kernel, matrix], lr=0.1)
    for _ in range(3):
        kernel.grad, matrix.grad = gradient.clone(), gradient.flatten(1).clone()
        optimizer.step()
    assert torch.equal(kernel.flatten(1), matrix)
    # As far as AdamW goes: the root mean square of an update is the learning rate times AdamW's 0.2.
    before = kernel.detach().clone()
    kernel.grad = gradient
    optimizer.param_groups[0]["weight_decay"] = 0.0
    optimizer.step()
    assert (kernel.detach() - before).square().mean().sqrt() == pytest.approx(0.1 * UPDATE_RMS, rel=0.2)


def test_it_descends_where_the_gradient_lies_in_few_directions():
    generator = torch.Generator().manual_seed(0)
    rotation, truth = torch.linalg.qr(torch.randn(2, 16, 16, generator=generator))[0]
    inputs = torch.randn(256, 16, generator=generator) * torch.logspace(0, -1.5, 16) @ rotation

    def error_with(optimizer_class):
        weight = nn.Parameter(torch.zeros(16, 16))
        optimizer = optimizer_class([weight], lr=0.03, weight_decay=0.0)
        for _ in range(100):
            (inputs @ (weight - truth)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return (weight - truth).square().mean()

    assert error_with(Muon) < 0.5 * error_with(torch.optim.AdamW)


def test_momentum_is_checked():
    with pytest.raises(ValueError, match=r"`momentum` must be in \[0, 1\), got 1.0"):
        Muon([nn.Parameter(torch.eye(2))], momentum=1.0)
