"""Energy, margins and hinges: printed values, bounds, both fills, the temperature in front, errors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import UsageError
from expunge.losses import eua, logprobs
from expunge.losses.eua import energy, eua_forget_loss, eua_margins, eua_retain_loss

Z = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)


def energy_of(logits: torch.Tensor, *, temperature: float = 1.0, leading: bool = True) -> torch.Tensor:
    lse = torch.logsumexp(logits / temperature, -1)
    return energy(lse, temperature=temperature, leading_temperature=leading)


def naive_margins(logits: torch.Tensor, *, ratio: float, temperature: float, fill: str) -> torch.Tensor:
    """By the definition: a full tensor with the other logits replaced, without the leading T."""
    k = int(logits.shape[-1] * ratio)
    order = logits.argsort(-1, descending=True)
    sides = []
    for kept in (order[:, :k], order[:, -k:]):
        filled = torch.full_like(logits, 0.0 if fill == "zero" else -math.inf)
        filled.scatter_(-1, kept, logits.gather(-1, kept))
        sides.append(-torch.logsumexp(filled / temperature, -1))
    return torch.stack(sides, -1)


@pytest.mark.parametrize(
    ("temperature", "values", "terms"),
    [
        (1.0, (-2.440190, -2.493812, -1.214283), (1.502846, 0.00287532)),
        (2.0, (-1.787339, -1.851129, -1.282746), (0.254613, 0.00406919)),
    ],
)
def test_published_energy_margins_and_terms(
    temperature: float, values: tuple[float, float, float], terms: tuple[float, float]
) -> None:
    found = energy_of(Z, temperature=temperature, leading=False)
    margins = eua_margins(Z, ratio=0.5, temperature=temperature, fill="zero", leading_temperature=False)
    assert (found.item(), *margins[0].tolist()) == pytest.approx(values, abs=1e-6)
    assert eua_forget_loss(found, margins[:, 1]).item() == pytest.approx(terms[0], abs=1e-6)
    assert eua_retain_loss(found, margins[:, 0]).item() == pytest.approx(terms[1], abs=1e-8)


def test_margins_without_fill() -> None:
    margins = eua_margins(Z, ratio=0.5, temperature=1, fill="neg_inf")
    assert margins[0].tolist() == pytest.approx([-2.313262, -0.313262], abs=1e-6)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1000),
    ratio=st.sampled_from([0.1, 0.3, 0.5, 0.8, 1.0]),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    fill=st.sampled_from(["zero", "neg_inf"]),
    rows=st.integers(1, 4),
)
def test_margins_match_the_definition(seed: int, ratio: float, temperature: float, fill: str, rows: int) -> None:
    logits = 3 * torch.randn(5, 11, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    logits[0, :6] = logits[0, 6]  # ties
    expected = naive_margins(logits, ratio=ratio, temperature=temperature, fill=fill)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logprobs, "CHUNK_BYTES", rows * 4 * 11)
        published = eua_margins(logits, ratio=ratio, temperature=temperature, fill=fill, leading_temperature=False)
        canonical = eua_margins(logits, ratio=ratio, temperature=temperature, fill=fill)
    torch.testing.assert_close(published, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(canonical, temperature * expected, rtol=1e-12, atol=1e-12)


def test_the_quickselect_and_topk_agree() -> None:
    logits = torch.randn(4, 11, generator=torch.Generator().manual_seed(0))
    top, bottom = eua._extremes(logits, 3)
    assert torch.equal(top.sort(-1).values, logits.topk(3).values.flip(-1))
    assert torch.equal(bottom.sort(-1).values, logits.topk(3, largest=False).values)


def test_the_zero_fill_margin_depends_on_the_vocabulary_alone() -> None:
    logits = torch.full((1, 128256), -40.0)
    logits[0, 7] = 20
    margins = eua_margins(logits, ratio=0.1, temperature=1, fill="zero")
    assert margins[0, 1].item() == pytest.approx(-math.log(128256 - 12825), abs=1e-4)
    assert margins[0, 1].item() == pytest.approx(-11.656, abs=1e-3)


@pytest.mark.parametrize("ratio", [0.0, 0.24, 1.3])
def test_a_ratio_without_tokens_is_refused(ratio: float) -> None:
    with pytest.raises(UsageError, match=f"ratio {ratio} selects"):
        eua_margins(Z, ratio=ratio, temperature=1, fill="zero")


def test_an_unknown_fill_is_refused() -> None:
    with pytest.raises(UsageError, match="'none'"):
        eua_margins(Z, ratio=0.5, temperature=1, fill="none")


def test_margins_are_float32_without_gradient_and_take_nothing() -> None:
    logits = Z.bfloat16().requires_grad_()
    margins = eua_margins(logits, ratio=0.5, temperature=1, fill="zero")
    assert margins.dtype == torch.float32
    assert not margins.requires_grad
    assert eua_margins(Z[:0], ratio=0.5, temperature=1, fill="zero").shape == (0, 2)
    with torch.inference_mode():
        assert torch.equal(eua_margins(Z.bfloat16(), ratio=0.5, temperature=1, fill="zero"), margins)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(values=st.lists(st.floats(-30, 30), min_size=1, max_size=9), shift=st.floats(-50, 50))
def test_energy_moves_with_a_constant_and_is_bounded_by_the_largest_logit(values: list[float], shift: float) -> None:
    logits = torch.tensor([values], dtype=torch.float64)
    found, top = energy_of(logits).item(), max(values)
    assert energy_of(logits + shift).item() == pytest.approx(found - shift, abs=1e-9)
    assert -top - math.log(len(values)) - 1e-9 <= found <= -top + 1e-9


@pytest.mark.parametrize("leading", [True, False])
def test_the_forget_gradient_lowers_logits_in_proportion_to_probability(leading: bool) -> None:
    temperature, m_out = 2.0, torch.tensor([-1.0], dtype=torch.float64)
    logits = Z.clone().requires_grad_()
    found = energy_of(logits, temperature=temperature, leading=leading)
    (gradient,) = torch.autograd.grad(eua_forget_loss(found, m_out).sum(), logits)
    scale = 1 if leading else 1 / temperature
    expected = 2 * (m_out - found.detach()) * scale * (Z / temperature).softmax(-1)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


def test_hinges_are_flat_on_the_right_side_of_the_margin() -> None:
    values = torch.tensor([-3.0, -2.0, -1.0], requires_grad=True)
    margin = torch.full((3,), -2.0, requires_grad=True)
    retain = eua_retain_loss(values, margin)
    forget = eua_forget_loss(values, margin)
    assert retain.tolist() == [0, 0, 1]
    assert forget.tolist() == [1, 0, 0]
    (retain.sum() + 3 * forget.sum()).backward()
    assert values.grad is not None
    assert values.grad.tolist() == [-6, 0, 2]
    assert margin.grad is None
