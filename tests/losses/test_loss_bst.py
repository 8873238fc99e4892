"""BS-T: printed values, the label's identities, the gradient, chunks, dtypes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import UsageError
from expunge.losses import logprobs
from expunge.losses.bst import bst_loss
from expunge.losses.grad_ascent import grad_ascent_loss
from expunge.losses.logprobs import normalise

Z = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
VOCAB = 7


def batch(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, VOCAB, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), torch.randint(VOCAB, (n,), generator=generator)


def label(logits: torch.Tensor, targets: torch.Tensor, *, share: float, k: int) -> torch.Tensor:
    """By the definition."""
    q = logits.detach().softmax(-1)
    kept = torch.zeros_like(q).scatter(-1, q.topk(k).indices, 1) * q
    hard = torch.nn.functional.one_hot(targets, q.shape[-1]).double()
    return share * kept / kept.sum(-1, keepdim=True) + (1 - share) * hard


@pytest.mark.parametrize(("share", "value"), [(0.0, -2.440190), (0.5, -1.574660), (1.0, -0.709131)])
def test_published_values(share: float, value: float) -> None:
    assert bst_loss(Z, torch.tensor([2]), share=share, k=2).item() == pytest.approx(value, abs=1e-6)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(seed=st.integers(0, 999), share=st.floats(0, 1), k=st.integers(1, VOCAB), rows=st.integers(1, 4))
def test_value_and_gradient_are_the_definition(seed: int, share: float, k: int, rows: int) -> None:
    logits, targets = batch(5, seed)
    wanted = label(logits, targets, share=share, k=k)
    torch.testing.assert_close(wanted.sum(-1), torch.ones(5, dtype=torch.float64))
    upstream = torch.linspace(-1, 2, 5, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logprobs, "CHUNK_BYTES", rows * 4 * VOCAB)
        assert logprobs.rows_per_chunk(logits) == rows
        values = bst_loss(logits, targets, share=share, k=k)
        (gradient,) = torch.autograd.grad((values * upstream).sum(), logits)
    torch.testing.assert_close(values, (wanted * logits.log_softmax(-1)).sum(-1), rtol=1e-12, atol=1e-12)
    expected = upstream[:, None] * (wanted - logits.softmax(-1))
    torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-13)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(seed=st.integers(0, 999), share=st.floats(0, 1))
def test_without_beliefs_it_is_ascent_and_with_all_of_them_nothing_moves(seed: int, share: float) -> None:
    logits, targets = batch(4, seed)
    ascent = grad_ascent_loss(normalise(logits, targets).logp)
    torch.testing.assert_close(bst_loss(logits, targets, share=0, k=3), ascent, rtol=1e-14, atol=0)
    whole = bst_loss(logits, targets, share=1, k=VOCAB)
    (gradient,) = torch.autograd.grad(whole.sum(), logits)
    assert gradient.abs().max() < 1e-15
    # Beliefs take from the ascent what they hold: the residual of ascent minus lambda q~.
    (soft,) = torch.autograd.grad(bst_loss(logits, targets, share=share, k=3).sum(), logits)
    (hard,) = torch.autograd.grad(ascent.sum(), logits)
    beliefs = label(logits, targets, share=1, k=3)
    hot = torch.nn.functional.one_hot(targets, VOCAB)
    torch.testing.assert_close(soft, hard + share * (beliefs - hot), rtol=1e-11, atol=1e-13)


def test_more_beliefs_than_tokens_are_all_of_them() -> None:
    logits, targets = batch(3)
    assert torch.equal(bst_loss(logits, targets, share=0.3, k=99), bst_loss(logits, targets, share=0.3, k=VOCAB))
    with pytest.raises(UsageError, match="k=0"):
        bst_loss(logits, targets, share=0.3, k=0)


def test_second_derivative_matches_finite_differences() -> None:
    logits, targets = batch(2)
    # The label would change with the logits under a finite difference, so only its constant part is compared.
    assert torch.autograd.gradgradcheck(lambda z: bst_loss(z, targets, share=0, k=1), (logits,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_narrow_logits_give_float32_and_their_own_gradient(dtype: torch.dtype) -> None:
    logits, targets = batch(3)
    narrow = logits.detach().to(dtype).requires_grad_()
    values = bst_loss(narrow, targets, share=0.2, k=3)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), bst_loss(logits, targets, share=0.2, k=3), rtol=0.05, atol=0.05)
    values.sum().backward()  # type: ignore[no-untyped-call]
    assert narrow.grad is not None
    assert narrow.grad.dtype == dtype
    assert bst_loss(narrow[:0], targets[:0], share=0.2, k=3).shape == (0,)
