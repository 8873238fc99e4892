"""Our Muon takes torch's steps, in the dtype the machine is fast in."""

from __future__ import annotations

import pytest
import torch

from expunge.train.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(24, 24), (12, 40), (40, 12)])
def test_steps_are_torchs_up_to_its_bfloat16(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    mine = Muon([ours], lr=0.02, weight_decay=0.1)
    torchs = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="original")
    for _ in range(4):
        gradient = torch.randn(shape, generator=generator)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        torchs.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.03 * moved


def test_singular_values_come_near_one() -> None:
    matrices = torch.randn(3, 20, 33, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_matrices_of_one_shape_do_not_mix() -> None:
    matrices = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(2))
    together = orthogonalise(matrices)
    for one, alone in zip(together, matrices, strict=True):
        assert torch.allclose(one, orthogonalise(alone[None])[0], atol=1e-5)
