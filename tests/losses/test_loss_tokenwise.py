"""TNPO and WTNPO: printed values, weights, the closed form they differentiate, limits, the published constant."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.losses.grad_ascent import grad_ascent_loss
from expunge.losses.npo import npo_loss
from expunge.losses.tnpo import PUBLISHED_EPS, tnpo_loss, tnpo_weight
from expunge.losses.wga import wga_loss
from expunge.losses.wtnpo import wtnpo_loss

LOGPS = torch.tensor([0.5, 0.25], dtype=torch.float64).log()
"""One sequence of two tokens."""
REF_LOGPS = torch.tensor([0.8, 0.5], dtype=torch.float64).log()

pairs = st.lists(st.tuples(st.floats(1e-6, 1.0), st.floats(1e-6, 1.0)), min_size=1, max_size=8)
betas = st.floats(0.05, 8)


def logs(found: list[tuple[float, float]]) -> tuple[torch.Tensor, torch.Tensor]:
    ours, theirs = torch.tensor(found, dtype=torch.float64).log().unbind(-1)
    return ours.clone().requires_grad_(), theirs.clone()


@pytest.mark.parametrize(
    ("beta", "value", "weights"), [(1, -0.728693, (0.769231, 0.666667)), (4, -0.173311, (0.264774, 0.117647))]
)
def test_tnpo_value_and_weights(beta: float, value: float, weights: tuple[float, float]) -> None:
    assert tnpo_loss(LOGPS, REF_LOGPS, beta=beta).mean().item() == pytest.approx(value, abs=1e-6)
    assert tnpo_weight(LOGPS, REF_LOGPS, beta=beta).tolist() == pytest.approx(weights, abs=1e-6)


def test_wtnpo_value_and_weights() -> None:
    loss = wtnpo_loss(LOGPS, REF_LOGPS, beta=4, exponent=1.5)
    assert loss.mean().item() == pytest.approx(-0.042637, abs=1e-6)
    assert (loss / LOGPS).tolist() == pytest.approx((0.0936119, 0.0147059), abs=1e-6)


def test_the_published_constant_disturbs_small_probabilities() -> None:
    unlikely = torch.tensor([0.05], dtype=torch.float64).log()
    assert tnpo_weight(unlikely, unlikely, beta=4).item() == 1
    assert tnpo_weight(unlikely, unlikely, beta=4, eps=PUBLISHED_EPS).item() == pytest.approx(0.5556, abs=1e-4)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(found=pairs, beta=betas)
def test_the_gradient_is_that_of_npo_on_every_token(found: list[tuple[float, float]], beta: float) -> None:
    logps, ref_logps = logs(found)
    (weighted,) = torch.autograd.grad(tnpo_loss(logps, ref_logps, beta=beta).sum(), logps)
    (closed,) = torch.autograd.grad(npo_loss(logps, ref_logps, beta=beta).sum(), logps)
    torch.testing.assert_close(weighted, closed)
    assert ((weighted >= 0) & (weighted <= 2)).all()


@settings(derandomize=True, deadline=None, max_examples=50)
@given(found=pairs, beta=betas, exponent=st.floats(0, 5))
def test_limits(found: list[tuple[float, float]], beta: float, exponent: float) -> None:
    logps, ref_logps = logs(found)
    assert torch.equal(wtnpo_loss(logps, ref_logps, beta=beta, exponent=0), tnpo_loss(logps, ref_logps, beta=beta))
    flat = wtnpo_loss(logps, ref_logps, beta=1e-9, exponent=exponent)
    torch.testing.assert_close(flat, wga_loss(logps, beta=exponent), atol=1e-6, rtol=1e-6)
    assert torch.equal(tnpo_loss(logps, logps, beta=beta), grad_ascent_loss(logps))


@settings(derandomize=True, deadline=None, max_examples=30)
@given(found=pairs, beta=betas)
def test_a_vanishing_constant_is_no_constant(found: list[tuple[float, float]], beta: float) -> None:
    logps, ref_logps = logs(found)
    exact, nearly = (tnpo_weight(logps, ref_logps, beta=beta, eps=eps) for eps in (0, 1e-300))
    likely = (beta * torch.maximum(logps.detach(), ref_logps)) > -600
    torch.testing.assert_close(exact[likely], nearly[likely])


def test_probabilities_that_underflow_stay_finite() -> None:
    tiny = torch.tensor([-2000.0, -1.0])
    assert torch.isfinite(tnpo_loss(tiny, tiny.flip(0), beta=4)).all()
    assert tnpo_weight(tiny, tiny, beta=4).tolist() == [1, 1]
