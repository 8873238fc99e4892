"""Log-probability and log-sum-exp per position: values, both derivatives, chunks, 16-bit inputs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from expunge.losses import logprobs
from expunge.losses.logprobs import normalise, rows_per_chunk


@pytest.fixture
def tiny_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two positions of vocabulary 7 per chunk."""
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", 2 * 4 * 7)


def batch(n: int, vocab: int = 7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, vocab, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(vocab, (n,), generator=generator)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_values_and_gradient_match_autograd_at_every_chunk_boundary(
    n: int, temperature: float, tiny_chunks: None
) -> None:
    logits, targets = batch(n)
    assert rows_per_chunk(logits) == 2
    upstream = torch.linspace(-1, 2, 2 * n, dtype=torch.float64).reshape(2, n)
    found = normalise(logits, targets, temperature=temperature)
    expected_lse = torch.logsumexp(logits / temperature, -1)
    expected_logp = logits[torch.arange(n), targets] / temperature - expected_lse
    torch.testing.assert_close(found.lse, expected_lse, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(found.logp, expected_logp, rtol=1e-13, atol=1e-14)
    (gradient,) = torch.autograd.grad((found.logp * upstream[0] + found.lse * upstream[1]).sum(), logits)
    (expected,) = torch.autograd.grad((expected_logp * upstream[0] + expected_lse * upstream[1]).sum(), logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_first_and_second_derivative_match_finite_differences(temperature: float, tiny_chunks: None) -> None:
    logits, targets = batch(3)
    assert torch.autograd.gradcheck(lambda z: tuple(normalise(z, targets, temperature=temperature)), (logits,))
    assert torch.autograd.gradgradcheck(lambda z: tuple(normalise(z, targets, temperature=temperature)), (logits,))


@settings(derandomize=True, deadline=None, max_examples=25)
@given(rows=st.integers(1, 9), n=st.integers(0, 12))
def test_the_chunk_size_changes_nothing(rows: int, n: int) -> None:
    logits, targets = batch(n)
    whole = normalise(logits, targets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logprobs, "CHUNK_BYTES", rows * 4 * 7)
        parts = normalise(logits, targets)
    torch.testing.assert_close(parts.lse, whole.lse, rtol=1e-15, atol=0)


def test_no_positions() -> None:
    logits, targets = batch(0)
    found = normalise(logits, targets)
    found.logp.sum().backward()
    assert found.lse.shape == found.logp.shape == (0,)
    assert logits.grad is not None
    assert logits.grad.shape == (0, 7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_logits_are_summed_in_float32(dtype: torch.dtype) -> None:
    logits, targets = batch(6)
    narrow = logits.detach().to(dtype).requires_grad_()
    found = normalise(narrow, targets)
    assert found.lse.dtype == found.logp.dtype == torch.float32
    expected = cross_entropy(narrow.detach().float(), targets, reduction="none")
    torch.testing.assert_close(-found.logp, expected, rtol=2e-6, atol=2e-6)
    (-found.logp).sum().backward()
    assert narrow.grad is not None
    assert narrow.grad.dtype == dtype


def test_the_gradient_of_a_memorised_token_survives_bfloat16() -> None:
    """p - 1 for p = .9995 is -4.5e-4; adding p and -1 in bfloat16 would give 0."""
    logits = torch.tensor([[10.0, 0.0, 0.0, 1.0]], dtype=torch.bfloat16, requires_grad=True)
    found = normalise(logits, torch.tensor([0]))
    (-found.logp).sum().backward()
    wide = logits.detach().double().requires_grad_()
    cross_entropy(wide, torch.tensor([0])).backward()
    assert logits.grad is not None
    assert wide.grad is not None
    torch.testing.assert_close(logits.grad.double(), wide.grad, rtol=2**-8, atol=0)


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_large_logits_stay_finite(scale: float) -> None:
    logits = torch.tensor([[scale, 0.0, -scale]], requires_grad=True)
    found = normalise(logits, torch.tensor([1]))
    (-found.logp).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(found.lse).all()
    assert torch.isfinite(logits.grad).all()


def test_a_gradient_flows_through_either_output_alone() -> None:
    logits, targets = batch(3)
    (only_logp,) = torch.autograd.grad(normalise(logits, targets).logp.sum(), logits)
    expected = torch.nn.functional.one_hot(targets, 7) - logits.softmax(-1).detach()
    torch.testing.assert_close(only_logp, expected, rtol=1e-14, atol=1e-15)
    (only_lse,) = torch.autograd.grad(normalise(logits, targets).lse.sum(), logits)
    torch.testing.assert_close(only_lse, logits.softmax(-1).detach(), rtol=1e-14, atol=1e-15)


def test_a_memorised_token_keeps_its_digits() -> None:
    logits = torch.tensor([[20.0, 4.0, 3.0, -2.0]])
    exact = torch.log_softmax(logits.double(), -1)[0, 0].item()
    # One unit in the last place of 1, not of the log-sum-exp (20): an eighth of the error of z_y - lse.
    assert normalise(logits, torch.tensor([0])).logp.item() == pytest.approx(exact, abs=1.3e-7)
