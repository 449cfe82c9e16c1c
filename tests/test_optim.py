"""Muon: orthogonal steps of a stated length."""

import pytest
import torch

from para_video.optim import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 48, 12), (1, 8, 72)])
def test_singular_values_are_drawn_near_one_and_directions_stay(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    u, s, v = torch.linalg.svd(matrices, full_matrices=False)
    found = orthogonalised(matrices).float()
    mixed = u.mT @ found @ v.mT
    values = torch.diagonal(mixed, dim1=-2, dim2=-1)
    kept = values[s > 0.1 * s.amax(-1, keepdim=True)]
    assert float(kept.min()) > 0.6 and float(kept.max()) < 1.3
    assert float((mixed - torch.diag_embed(values)).abs().max()) < 0.1


def test_a_step_is_as_long_as_adamw_makes_it_whatever_the_gradient():
    for scale in (1e-3, 1e3):
        weight = torch.nn.Parameter(torch.zeros(32, 8, 3, 3))
        weight.grad = scale * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        Muon([weight], lr=0.01).step()
        assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.2 * 0.01, rel=0.25)


def test_matrices_decay_and_those_without_a_gradient_stay():
    taught, idle = torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.ones(4, 4))
    taught.grad = torch.zeros(4, 4)
    Muon([taught, idle], lr=0.1, weight_decay=0.5).step()
    assert torch.allclose(taught, torch.full((4, 4), 0.95))
    assert torch.equal(idle, torch.ones(4, 4))


def test_it_minimises():
    torch.manual_seed(0)
    goal = torch.randn(6, 10)
    weight = torch.nn.Parameter(torch.zeros(6, 10))
    optimizer = Muon([weight], lr=0.1)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 200)
        optimizer.zero_grad()
        (weight - goal).square().sum().backward()
        optimizer.step()
    assert float((weight.detach() - goal).abs().max()) < 0.1


def test_vectors_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\).*AdamW"):
        Muon([torch.nn.Parameter(torch.zeros(3))], lr=0.1)
