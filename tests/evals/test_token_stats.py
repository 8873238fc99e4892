"""The one sweep over the vocabulary equals the textbook definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.evals import trace
from expunge.evals.trace import token_stats
from expunge.losses import logprobs

BIGRAM = {"B": (0.5, 0.25, 0.25), "a": (0.25, 0.5, 0.25), "b": (0.125, 0.125, 0.75)}


def bigram_logits(states: str, constant: float = 3.0) -> torch.Tensor:
    return torch.tensor([[math.log(p) + constant for p in BIGRAM[s]] for s in states], dtype=torch.float64)


@pytest.mark.parametrize(
    ("target", "loss", "hits", "ranks", "z"),
    [
        ("abE", 0.557992, [1, 1, 1], [1, 1, 1], [1, 1, 0.577350]),
        ("baE", 1.617343, [0, 0, 0], [2, 2, 2], [-1, -1.732051, -1]),
        ("aaE", 1.155245, [1, 0, 0], [1, 2, 2], [1, -1, -1]),
    ],
)
def test_toy_bigram_model(target: str, loss: float, hits: list[int], ranks: list[int], z: list[float]) -> None:
    logits = bigram_logits("B" + target[:-1])
    stats = token_stats(logits, torch.tensor(["abE".index(c) for c in target]), moments=True)
    assert -stats.logp.mean().item() == pytest.approx(loss, abs=1e-6)
    assert stats.hit.int().tolist() == hits
    assert stats.rank is not None
    assert stats.rank.tolist() == ranks
    assert stats.mu is not None
    assert stats.var is not None
    assert ((stats.logp - stats.mu) / stats.var.sqrt()).tolist() == pytest.approx(z, abs=1e-5)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(n=st.integers(0, 40), vocab=st.integers(2, 30), seed=st.integers(0, 999))
def test_chunks_do_not_change_the_numbers(n: int, vocab: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, vocab, generator=generator) * 5
    targets = torch.randint(vocab, (n,), generator=generator)
    before = logprobs.CHUNK_BYTES
    try:
        logprobs.CHUNK_BYTES = 4 * vocab * 3
        small = token_stats(logits, targets, moments=True) if n else None
    finally:
        logprobs.CHUNK_BYTES = before
    if small is None:
        return
    log_q = torch.log_softmax(logits.double(), -1)
    assert torch.allclose(small.logp.double(), log_q.gather(-1, targets[:, None]).squeeze(-1), atol=1e-4)
    assert torch.equal(small.hit, logits.argmax(-1) == targets)
    assert small.mu is not None
    assert torch.allclose(small.mu.double(), (log_q.exp() * log_q).sum(-1), atol=1e-4)


def test_ties_go_to_the_lowest_id() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0], [2.0, 2.0, 2.0]])
    assert token_stats(logits, torch.tensor([1, 0]), moments=False).hit.tolist() == [True, True]
    assert token_stats(logits, torch.tensor([2, 2]), moments=False).hit.tolist() == [False, False]


def test_underflow_is_zero_not_nan() -> None:
    stats = token_stats(torch.tensor([[0.0, -1e4, -1e4]]), torch.tensor([0]), moments=True)
    assert stats.mu is not None
    assert stats.var is not None
    assert stats.mu.item() == 0.0
    assert stats.var.item() == 0.0


def test_a_pass_over_bfloat16_logits_is_summed_in_float32() -> None:
    logits = torch.randn(5, 1000, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    stats = token_stats(logits, torch.arange(5), moments=False)
    assert stats.logp.dtype == torch.float32
    assert torch.allclose(stats.lse, torch.logsumexp(logits.float(), -1), atol=1e-5)


def test_prompt_text_joins_the_turns() -> None:
    from expunge.data.example import Example, Turn

    example = Example("x:0", 0, turns=(Turn("system", "s"), Turn("user", "q"), Turn("assistant", "a")))
    assert trace.prompt_text(example) == "s\nq"
