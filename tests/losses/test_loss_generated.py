"""Generic labels and token quality: printed values, what leaves them alone, partitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from expunge.losses.nll import nll_loss
from expunge.losses.token_quality import forgetting_loss, positive_tokens, ramp, token_quality
from expunge.losses.whp import generic_logits, whp_loss

BASE = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64)
REINFORCED = torch.tensor([[3.0, 0.5, 0.2]], dtype=torch.float64)


def test_the_printed_generic_logits() -> None:
    found = generic_logits(BASE, REINFORCED, strength=5, difference="raw")
    torch.testing.assert_close(found, torch.tensor([[-3.0, 1.0, -1.0]], dtype=torch.float64))
    assert BASE.argmax().item() == 0
    assert found.argmax().item() == 1


def centre(logits: torch.Tensor) -> torch.Tensor:
    return logits - logits.mean(-1, keepdim=True)


INVARIANT = {"centred": centre, "log_softmax": lambda logits: logits.log_softmax(-1)}


@pytest.mark.parametrize("difference", list(INVARIANT))
def test_our_differences_do_not_depend_on_a_constant(difference: Any) -> None:
    scale = INVARIANT[difference]
    found = generic_logits(BASE, REINFORCED, strength=5, difference=difference)
    raised = (scale(REINFORCED) - scale(BASE)).relu()
    torch.testing.assert_close(found, BASE - 5 * raised)
    # Only the first token rose; the others keep their logits.
    assert (raised[0, 1:] == 0).all()
    assert found.argmax().item() == 1
    torch.testing.assert_close(generic_logits(BASE, REINFORCED + 7, strength=5, difference=difference), found)
    raw, raw_shifted = (generic_logits(BASE, r, strength=5, difference="raw") for r in (REINFORCED, REINFORCED + 7))
    assert (raw - raw_shifted).abs().max() > 1


def test_a_certain_token_still_falls() -> None:
    certain = torch.tensor([[12.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    more = certain + torch.tensor([[4.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    assert generic_logits(certain, more, strength=5).argmax().item() == 1
    assert generic_logits(certain, more, strength=5, difference="log_softmax").argmax().item() == 0


@pytest.mark.parametrize("difference", ["centred", "log_softmax", "raw"])
def test_nothing_reinforced_or_no_strength_leaves_the_starting_model(difference: Any) -> None:
    base, other = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(generic_logits(base, base, strength=5, difference=difference), base)
    assert torch.equal(generic_logits(base, other, strength=0, difference=difference), base)


def test_a_translation_takes_the_place_of_the_first_term_only() -> None:
    base, other, moved = torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    lowered = base - generic_logits(base, other, strength=5)
    torch.testing.assert_close(generic_logits(base, other, strength=5, translated=moved), moved - lowered)


def test_positions_without_a_label_cost_nothing_and_pull_nowhere() -> None:
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([4, -1, 0])
    loss = whp_loss(logits, labels)
    torch.testing.assert_close(loss[[0, 2]], -logits.log_softmax(-1)[[0, 2], [4, 0]])
    assert loss[1].item() == 0
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert not gradient[1].any()
    assert gradient[[0, 2]].any(-1).all()


def test_the_labels_take_no_gradient() -> None:
    base = BASE.clone().requires_grad_()
    assert not generic_logits(base, REINFORCED, strength=5).requires_grad


# Token quality


@pytest.mark.parametrize(("progress", "value"), [(0, 0), (0.5, 0.124995), (1, 0.24999)])
def test_the_printed_ramp(progress: float, value: float) -> None:
    assert ramp(progress, t_min=1e-5, t_max=0.25) == pytest.approx(value, abs=1e-12)


def test_quality_is_what_the_reference_improved() -> None:
    base, reference = np.log([0.5, 0.2, 0.9]), np.log([0.6, 0.1, 0.9])
    quality = token_quality(base, reference)
    np.testing.assert_allclose(quality, -base - -reference)
    assert quality.round(6).tolist() == [0.182322, -0.693147, 0]
    np.testing.assert_allclose(token_quality(reference, base), -quality)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    quality=arrays(np.float64, st.integers(0, 60), elements=st.floats(-3, 3)),
    rho=st.floats(0, 1),
)
def test_every_token_is_positive_or_negative_and_the_best_are_positive(quality: np.ndarray, rho: float) -> None:
    positive = positive_tokens(quality, rho=rho)
    assert positive.shape == quality.shape
    assert abs(int(positive.sum()) - rho * len(quality)) < 1 + 1e-6
    if positive.any() and (~positive).any():
        assert quality[positive].min() >= quality[~positive].max()


def test_shares_that_floats_round_down_are_whole() -> None:
    assert positive_tokens(np.zeros(100), rho=0.29).sum() == 29
    assert positive_tokens(np.array([1.0, 2.0, 1.0, 1.0]), rho=0.5).tolist() == [True, True, False, False]


def test_the_loss_is_two_means() -> None:
    logps = torch.tensor([0.5, 0.25, 0.125, 0.5], dtype=torch.float64).log().requires_grad_()
    positive = torch.tensor([True, False, True, False])
    loss = forgetting_loss(logps, positive, num_positive=2, num_negative=2, weight=0.1)
    ce = -logps.detach()
    assert loss.sum().item() == pytest.approx((ce[[0, 2]].mean() - 0.1 * ce[[1, 3]].mean()).item())
    (gradient,) = torch.autograd.grad(loss.sum(), logps)
    assert gradient.tolist() == pytest.approx([-0.5, 0.05, -0.5, 0.05])


def test_all_positive_is_plain_fine_tuning_and_no_tokens_divide_by_one() -> None:
    logps = torch.tensor([-1.0, -2.0, -0.5])
    every = torch.ones(3, dtype=torch.bool)
    loss = forgetting_loss(logps, every, num_positive=3, num_negative=0, weight=0.2)
    torch.testing.assert_close(loss.sum(), nll_loss(logps).mean())
    none = forgetting_loss(logps[:0], every[:0], num_positive=0, num_negative=0, weight=0.2)
    assert none.sum().item() == 0
