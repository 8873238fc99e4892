"""KL from the starting model: value, direction, gradient, chunks, dtypes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import kl_div

from expunge.losses import kl, logprobs
from expunge.losses.kl import kl_loss


def pair(n: int, vocab: int = 7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits, reference = 3 * torch.randn(2, n, vocab, generator=generator, dtype=torch.float64)
    return logits.clone().requires_grad_(), reference


def naive(logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return kl_div(logits.log_softmax(-1), reference.log_softmax(-1), reduction="none", log_target=True).sum(-1)


def test_value_and_direction() -> None:
    reference = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log()
    current = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
    assert kl_loss(current, reference).item() == pytest.approx(0.0851228, abs=1e-7)
    assert kl_loss(reference, current).item() != pytest.approx(0.0851228, abs=1e-3)


def test_the_starting_model_has_neither_loss_nor_gradient() -> None:
    logits, _ = pair(4)
    loss = kl_loss(logits, logits.detach())
    loss.sum().backward()
    assert loss.abs().max() == 0
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_matches_autograd_at_every_chunk_boundary(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", 2 * 4 * 7)
    logits, reference = pair(n)
    assert kl.rows_per_chunk(logits) == 2
    upstream = torch.linspace(-1, 2, n, dtype=torch.float64)
    torch.testing.assert_close(kl_loss(logits, reference), naive(logits, reference), rtol=1e-12, atol=1e-13)
    (gradient,) = torch.autograd.grad((kl_loss(logits, reference) * upstream).sum(), logits)
    (expected,) = torch.autograd.grad((naive(logits, reference) * upstream).sum(), logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(lambda z: kl_loss(z, reference), (logits,))


def test_second_derivative_matches_finite_differences() -> None:
    logits, reference = pair(2)
    assert torch.autograd.gradgradcheck(lambda z: kl_loss(z, reference), (logits,))


def test_no_positions_and_no_gradient_for_the_reference() -> None:
    logits, reference = pair(0)
    kl_loss(logits, reference).sum().backward()
    logits, reference = pair(3)
    reference.requires_grad_()
    kl_loss(logits, reference).sum().backward()
    assert logits.grad is not None
    assert reference.grad is None


@settings(derandomize=True, deadline=None, max_examples=50)
@given(seed=st.integers(0, 1000), shift=st.floats(-50, 50))
def test_never_negative_and_blind_to_a_constant(seed: int, shift: float) -> None:
    logits, reference = pair(3, seed=seed)
    loss = kl_loss(logits, reference)
    assert (loss >= -1e-12).all()
    torch.testing.assert_close(kl_loss(logits + shift, reference - shift), loss, rtol=1e-9, atol=1e-11)


def test_16_bit_logits_are_summed_in_float32() -> None:
    logits, reference = pair(5)
    narrow = logits.detach().bfloat16().requires_grad_()
    loss = kl_loss(narrow, reference.float())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, naive(narrow.detach().float(), reference.float()), rtol=1e-5, atol=1e-6)
    loss.sum().backward()
    assert narrow.grad is not None
    assert narrow.grad.dtype == torch.bfloat16
