"""Losses on token and sequence log-probabilities: printed values, identities, weights, limits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.losses.dpo import dpo_loss
from expunge.losses.grad_ascent import grad_ascent_loss
from expunge.losses.nll import nll_loss
from expunge.losses.npo import npo_loss
from expunge.losses.satimp import satimp_loss, satimp_weight
from expunge.losses.simnpo import simnpo_loss
from expunge.losses.wga import wga_loss

LOGPS = torch.tensor([0.5, 0.25], dtype=torch.float64).log()
"""One sequence of two tokens."""
REF_LOGPS = torch.tensor([0.8, 0.5], dtype=torch.float64).log()

probabilities = st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=8)
exponents = st.floats(0, 6)


def summed(logps: torch.Tensor) -> torch.Tensor:
    return logps.sum()[None]


def test_gradient_ascent_is_minus_the_likelihood_loss() -> None:
    assert grad_ascent_loss(LOGPS).mean().item() == pytest.approx(-1.039721, abs=1e-6)
    assert torch.equal(grad_ascent_loss(LOGPS), -nll_loss(LOGPS))


@pytest.mark.parametrize(
    ("beta", "value", "weight"),
    [(0.1, 12.733597, 0.941908), (0.5, 1.776222, 0.717140), (1.0, 0.543867, 0.476190)],
)
def test_npo_value_and_weight(beta: float, value: float, weight: float) -> None:
    logps = summed(LOGPS).requires_grad_()
    loss = npo_loss(logps, summed(REF_LOGPS), beta=beta)
    (gradient,) = torch.autograd.grad(loss.sum(), logps)
    assert loss.item() == pytest.approx(value, abs=1e-6)
    assert gradient.item() == pytest.approx(weight, abs=1e-6)


def test_npo_starts_as_gradient_ascent_on_the_sequence_sum() -> None:
    logps = summed(LOGPS).requires_grad_()
    loss = npo_loss(logps, logps, beta=0.1)
    (gradient,) = torch.autograd.grad(loss.sum(), logps)
    assert loss.item() == pytest.approx(20 * math.log(2), rel=1e-14)
    assert gradient.item() == 1


def test_npo_with_a_small_beta_is_gradient_ascent() -> None:
    beta = 1e-6
    loss = npo_loss(summed(LOGPS), summed(REF_LOGPS), beta=beta) - 2 / beta * math.log(2)
    assert loss.item() == pytest.approx((LOGPS - REF_LOGPS).sum().item(), abs=1e-5)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(margins=st.lists(st.floats(-1000, 1000), min_size=2, max_size=6), beta=st.floats(0.01, 5))
def test_npo_weight_is_bounded_and_rises_with_likelihood(margins: list[float], beta: float) -> None:
    logps = torch.tensor(sorted(margins), dtype=torch.float64, requires_grad=True)
    loss = npo_loss(logps, torch.zeros_like(logps), beta=beta)
    (weight,) = torch.autograd.grad(loss.sum(), logps)
    assert torch.isfinite(loss).all()
    assert ((weight >= 0) & (weight <= 2)).all()
    assert (weight.diff() >= 0).all()


@pytest.mark.parametrize(("beta", "delta", "value"), [(2.5, 0, 0.057354), (4.5, 0, 0.004110), (4.5, 1, 0.270117)])
def test_simnpo_value(beta: float, delta: float, value: float) -> None:
    loss = simnpo_loss(summed(LOGPS), torch.tensor([2]), beta=beta, delta=delta)
    assert loss.item() == pytest.approx(value, abs=1e-6)


def test_simnpo_does_not_see_length_and_npo_does() -> None:
    once, twice = summed(LOGPS), summed(torch.cat([LOGPS, LOGPS]))
    short = simnpo_loss(once, torch.tensor([2]), beta=2.5)
    long = simnpo_loss(twice, torch.tensor([4]), beta=2.5)
    assert short.item() == pytest.approx(long.item(), rel=1e-14)
    reference = summed(REF_LOGPS)
    assert npo_loss(once, reference, beta=0.5).item() != pytest.approx(
        npo_loss(twice, 2 * reference, beta=0.5).item(), rel=0.1
    )


def test_simnpo_delta_shifts_the_mean_loss() -> None:
    shifted = simnpo_loss(summed(LOGPS) + 2 * 0.3, torch.tensor([2]), beta=2.5)
    assert simnpo_loss(summed(LOGPS), torch.tensor([2]), beta=2.5, delta=0.3).item() == pytest.approx(shifted.item())


def test_simnpo_weight_is_divided_by_the_length() -> None:
    logps = torch.tensor([-3.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(simnpo_loss(logps, torch.tensor([3]), beta=2.0, delta=0.5).sum(), logps)
    assert gradient.item() == pytest.approx(2 / (1 + math.exp(2.0 * (1 - 0.5))) / 3, rel=1e-12)


def test_a_sequence_without_tokens_is_a_constant() -> None:
    logps = torch.zeros(1, requires_grad=True)
    loss = simnpo_loss(logps, torch.tensor([0]), beta=4.5)
    assert loss.item() == pytest.approx(2 / 4.5 * math.log(2))


def test_dpo_margins() -> None:
    win, lose, ref_win, ref_lose = (torch.tensor([v], dtype=torch.float64) for v in (-3.0, -2.0, -4.0, -1.0))
    loss = dpo_loss(win, lose, ref_win_logps=ref_win, ref_lose_logps=ref_lose, beta=0.1)
    margin = (-3.0 + 4.0) - (-2.0 + 1.0)
    assert loss.item() == pytest.approx(20 * math.log1p(math.exp(-0.1 * margin)), rel=1e-12)
    swapped = dpo_loss(lose, win, ref_win_logps=ref_lose, ref_lose_logps=ref_win, beta=0.1)
    assert swapped.item() == pytest.approx(20 * math.log1p(math.exp(0.1 * margin)), rel=1e-12)
    shifted = dpo_loss(win + 7, lose + 7, ref_win_logps=ref_win, ref_lose_logps=ref_lose, beta=0.1)
    assert shifted.item() == pytest.approx(loss.item(), rel=1e-12)


def test_dpo_starts_at_two_over_beta_ln_two_and_ignores_equal_answers() -> None:
    logps = torch.tensor([-3.0], dtype=torch.float64, requires_grad=True)
    loss = dpo_loss(logps, logps, ref_win_logps=logps, ref_lose_logps=logps, beta=0.1)
    (gradient,) = torch.autograd.grad(loss.sum(), logps)
    assert loss.item() == pytest.approx(20 * math.log(2), rel=1e-14)
    assert gradient.item() == 0


@pytest.mark.parametrize(("beta", "value"), [(1, -0.346574), (3, -0.054152), (5, -0.011507)])
def test_wga_value(beta: float, value: float) -> None:
    assert wga_loss(LOGPS, beta=beta).mean().item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(("betas", "value"), [((5, 1), -0.00592289), ((5, 0.1), -0.01076285), ((4, 0.1), -0.02284111)])
def test_satimp_value(betas: tuple[float, float], value: float) -> None:
    loss = satimp_loss(LOGPS, beta1=betas[0], beta2=betas[1])
    assert loss.mean().item() == pytest.approx(value, abs=1e-8)


@pytest.mark.parametrize(("beta", "value"), [(1, -0.693147), (5, -0.175317)])
def test_satimp_without_saturation_is_simimp(beta: float, value: float) -> None:
    assert satimp_loss(LOGPS, beta1=0, beta2=beta).mean().item() == pytest.approx(value, abs=1e-6)


def test_satimp_weights() -> None:
    weight = satimp_weight(LOGPS.clone().requires_grad_(), beta1=5, beta2=1)
    assert weight.tolist() == pytest.approx([0.015625, 0.00073242], abs=1e-8)
    assert not weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_satimp_at_certainty(dtype: torch.dtype) -> None:
    certain = torch.tensor([0.0, 1e-7], dtype=dtype)  # a rounding error above log 1
    assert satimp_weight(certain, beta1=4, beta2=0.1).tolist() == [0, 0]
    assert satimp_weight(certain, beta1=4, beta2=0).tolist() == [1, 1]


@settings(derandomize=True, deadline=None, max_examples=50)
@given(probabilities=probabilities, beta=exponents)
def test_lattice_of_weighted_ascent(probabilities: list[float], beta: float) -> None:
    logps = torch.tensor(probabilities, dtype=torch.float64).log()
    assert torch.equal(wga_loss(logps, beta=0), grad_ascent_loss(logps))
    assert torch.equal(satimp_loss(logps, beta1=0, beta2=0), grad_ascent_loss(logps))
    torch.testing.assert_close(satimp_loss(logps, beta1=beta, beta2=0), wga_loss(logps, beta=beta))


@settings(derandomize=True, deadline=None, max_examples=50)
@given(probabilities=probabilities, beta1=exponents, beta2=exponents)
def test_weights_are_detached_and_bounded(probabilities: list[float], beta1: float, beta2: float) -> None:
    logps = torch.tensor(probabilities, dtype=torch.float64).log().requires_grad_()
    (gradient,) = torch.autograd.grad(wga_loss(logps, beta=beta1).sum(), logps)
    torch.testing.assert_close(gradient, logps.detach().exp().pow(beta1))
    (gradient,) = torch.autograd.grad(satimp_loss(logps, beta1=beta1, beta2=beta2).sum(), logps)
    p = logps.detach().exp()
    torch.testing.assert_close(gradient, p.pow(beta1) * (1 - p).pow(beta2), atol=1e-9, rtol=1e-6)
    assert ((gradient >= 0) & (gradient <= 1)).all()


@settings(derandomize=True, deadline=None, max_examples=50)
@given(probabilities=probabilities, beta=st.floats(0.1, 6))
def test_wga_is_bounded(probabilities: list[float], beta: float) -> None:
    loss = wga_loss(torch.tensor(probabilities, dtype=torch.float64).log(), beta=beta)
    assert (loss >= -1 / (math.e * beta) - 1e-12).all()
    peak = wga_loss(torch.tensor([-1 / beta], dtype=torch.float64), beta=beta)
    assert peak.item() == pytest.approx(-1 / (math.e * beta), rel=1e-12)


@pytest.mark.parametrize(("betas", "peak"), [((5, 1), 0.833), ((5, 0.1), 0.980), ((4, 0.1), 0.976)])
def test_satimp_weight_peaks_where_it_should(betas: tuple[float, float], peak: float) -> None:
    grid = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    weight = satimp_weight(grid.log(), beta1=betas[0], beta2=betas[1])
    assert grid[weight.argmax()].item() == pytest.approx(peak, abs=2e-3)
