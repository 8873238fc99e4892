"""EEPO: the loss, and a step that leaves no trace in the weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from expunge.data.collate import Batch, collate
from expunge.data.encode import Dataset
from expunge.losses.eepo import eepo_loss
from expunge.losses.logprobs import normalise
from expunge.losses.segment import segment_mean
from expunge.models.score import score
from expunge.testing.tiny import tiny_llama
from expunge.train.eepo import EntropyGate, forgetting_step


@pytest.fixture
def model(tokenizer: Any) -> Any:
    return tiny_llama(len(tokenizer), seed=1)


@pytest.fixture
def responses(datasets: dict[str, Dataset]) -> list[Batch]:
    return [collate(datasets["forget"], rows, pad_id=0) for rows in ([0, 1, 2], [3])]


def bits(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone().view(torch.int32) for name, p in model.named_parameters()}


def same(model: Any, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in bits(model).items())


def probability(model: Any, batches: list[Batch]) -> float:
    with torch.no_grad():
        return float(torch.cat([score(model, batch).logps for batch in batches]).exp().mean())


@settings(derandomize=True, deadline=None)
@given(st.lists(st.floats(-8, 8), min_size=4, max_size=4))
def test_the_logit_gradient_is_that_of_ce_u(values: list[float]) -> None:
    logits = torch.tensor([values], dtype=torch.float64, requires_grad=True)
    loss = eepo_loss(normalise(logits, torch.tensor([2])).logp, eps=1e-12)
    (gradient,) = torch.autograd.grad(loss.sum(), [logits])
    q = logits.detach()[0].softmax(-1)
    p = float(q[2])
    expected = [p if v == 2 else -float(q[v]) * p / (1 - p) for v in range(4)]
    assert gradient[0].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert float(loss.detach()) == pytest.approx(-math.log1p(-p), rel=1e-9, abs=1e-15)


def test_a_certain_token_has_a_bounded_loss_and_no_gradient() -> None:
    logps = torch.tensor([0.0, -1e-9, -40.0], requires_grad=True)
    loss = eepo_loss(logps)
    assert loss.tolist() == pytest.approx([-math.log(1e-6), -math.log(1e-6), 0.0])
    (gradient,) = torch.autograd.grad(loss.sum(), [logps])
    assert gradient.isfinite().all()
    assert gradient[:2].tolist() == [0.0, 0.0]


def test_inside_the_responses_are_less_likely_and_afterwards_no_bit_has_changed(
    model: Any, responses: list[Batch]
) -> None:
    before, likely = bits(model), probability(model, responses)
    with forgetting_step(model, responses, learning_rate=1e-2) as step:
        assert not same(model, before)
        assert probability(model, responses) < likely
        assert step.taken
    assert same(model, before)
    assert probability(model, responses) == likely


def test_the_step_is_plain_descent_on_the_mean_over_responses(model: Any, responses: list[Batch]) -> None:
    total = torch.zeros(())
    for batch in responses:
        scored = score(model, batch)
        total = total + segment_mean(eepo_loss(scored.logps), scored.row, scored.num_rows).sum() / 4
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(total, parameters)
    expected = {n: p.detach() - 0.5 * g for n, p, g in zip(names, parameters, gradients, strict=True)}
    with forgetting_step(model, responses, learning_rate=0.5) as step:
        assert step.loss == pytest.approx(float(total.detach()), rel=1e-6)
        for name, p in model.named_parameters():
            assert torch.allclose(p, expected[name], atol=1e-7), name


def test_an_exception_inside_restores_as_well(model: Any, responses: list[Batch]) -> None:
    before = bits(model)

    def fail() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError), forgetting_step(model, responses):
        fail()
    assert same(model, before)


def test_an_exception_before_the_step_leaves_the_weights(model: Any, responses: list[Batch]) -> None:
    before = bits(model)
    broken = [responses[0], None]
    with pytest.raises(AttributeError), forgetting_step(model, broken):  # type: ignore[arg-type]
        pass
    assert same(model, before)


def test_without_the_indicator_or_responses_nothing_happens(model: Any, responses: list[Batch]) -> None:
    before = bits(model)
    for given_, active in ((responses, False), ([], True)):
        with forgetting_step(model, given_, active=active) as step:
            assert same(model, before)
            assert (step.taken, step.loss) == (False, None)


def test_gradients_frozen_parameters_and_mode_are_left_alone(model: Any, responses: list[Batch]) -> None:
    frozen = model.get_input_embeddings().weight.requires_grad_(False)
    head = model.get_output_embeddings().weight
    head.grad = torch.ones_like(head)
    before = bits(model)
    with torch.no_grad(), forgetting_step(model, responses, learning_rate=1.0):
        assert torch.equal(frozen.view(torch.int32), before["model.embed_tokens.weight"])
        assert not torch.equal(head.view(torch.int32), before["lm_head.weight"])
    assert torch.equal(head.grad, torch.ones_like(head))
    assert not model.training


def test_the_gate_opens_when_the_entropy_of_some_steps_is_low() -> None:
    gate = EntropyGate(threshold=0.3, window=3)
    assert [gate(entropy) for entropy in (0.1, 0.1, 0.1, 0.9, 0.1, 0.1, 0.1)] == [
        *(False, False, True),
        *(False, False, False),
        True,
    ]
