"""Sampling against the distribution it samples from, and against itself in other company."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.errors import ModelError
from expunge.models.decode import Continuation, draw, greedy, sample
from expunge.testing.tiny import tiny_llama

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [5, 6, 7], [20, 21], [22, 23, 24, 25]]


@pytest.fixture(scope="module")
def model() -> Any:
    # Sharper than at random, so that an end token comes now and then and probabilities differ.
    model = tiny_llama(40)
    model.get_output_embeddings().weight.data.mul_(30)
    return model


def run(model: Any, prompts: list[list[int]], **keys: Any) -> list[Continuation]:
    settings: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 12, "end_ids": {1, 2}, "pad_id": 0}
    settings |= {"seeds": list(range(len(prompts)))} | keys
    return sample(model, prompts, **settings).outputs


def test_a_prompt_is_continued_alike_in_any_company_and_order(model: Any) -> None:
    together = run(model, PROMPTS)
    alone = [run(model, [prompt], seeds=[seed])[0] for seed, prompt in enumerate(PROMPTS)]
    packed = run(model, PROMPTS, token_budget=5)
    order = [4, 2, 0, 5, 3, 1]
    shuffled = run(model, [PROMPTS[i] for i in order], seeds=order)
    assert together == alone == packed == [shuffled[order.index(i)] for i in range(len(PROMPTS))]


def test_equal_prompts_differ_by_seed_alone(model: Any) -> None:
    first, second, third = run(model, [PROMPTS[0]] * 3, seeds=[3, 4, 3], max_new_tokens=20)
    assert first == third
    assert first != second


def test_temperature_zero_is_greedy_and_a_low_one_nearly_so(model: Any) -> None:
    expected = greedy(model, PROMPTS, max_new_tokens=12, end_ids={1, 2}, pad_id=0).outputs
    assert run(model, PROMPTS, temperature=0.0) == expected
    assert run(model, PROMPTS, temperature=1e-9) == expected


def test_a_continuation_stops_at_an_end_token_and_at_the_limit(model: Any) -> None:
    made = run(model, PROMPTS * 8, max_new_tokens=9, end_ids={1, 2, 3, 4, 5, 6})
    assert {output.ended for output in made} == {True, False}
    assert all(output.ended or len(output.token) == 9 for output in made)
    assert not any(1 <= token <= 6 for output in made for token in output.token)
    assert run(model, PROMPTS[:1], max_new_tokens=0) == [Continuation([], False)]


@given(
    weights=st.lists(st.integers(0, 5), min_size=2, max_size=8).filter(any),
    temperature=st.floats(0.25, 4),
)
def test_each_token_owns_its_share_of_the_uniform_interval(weights: list[int], temperature: float) -> None:
    logits = torch.tensor([weights], dtype=torch.float64).log()
    probs = torch.softmax(logits / temperature, -1)[0]
    grid = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
    counts = draw(logits.expand(4096, -1), grid, temperature=temperature).bincount(minlength=len(weights))
    assert ((counts / 4096 - probs).abs() <= 2 / 4096).all()


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-52])
def test_the_ends_of_the_interval_never_choose_an_impossible_token(uniform: float) -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 3.0, -torch.inf]])
    assert draw(logits, torch.tensor([uniform], dtype=torch.float64), temperature=0.7).item() in (1, 2)


def test_limits_may_differ_and_a_shorter_one_is_a_beginning(model: Any) -> None:
    whole = run(model, PROMPTS, end_ids=set())
    short = run(model, PROMPTS, end_ids=set(), max_new_tokens=[0, 1, 2, 3, 12, 5])
    assert [output.token for output in short] == [
        output.token[:limit] for output, limit in zip(whole, [0, 1, 2, 3, 12, 5], strict=True)
    ]


def test_draws_follow_the_softmax(model: Any) -> None:
    made = run(model, [PROMPTS[2]] * 2000, seeds=list(range(2000)), max_new_tokens=1, token_budget=10_000)
    with torch.no_grad():
        probs = torch.softmax(model(torch.tensor([PROMPTS[2]])).logits[0, -1].double(), -1)
    counts = torch.tensor([output.token[0] for output in made if not output.ended]).bincount(minlength=40)
    keep = torch.tensor([i not in (1, 2) for i in range(40)])
    sigma = (probs * (1 - probs) / 2000).sqrt()
    assert ((counts / 2000 - probs).abs() <= 4.5 * sigma + 1e-3)[keep].all()


def test_wrong_arguments_and_logits_that_are_no_numbers_are_said(model: Any) -> None:
    with pytest.raises(ValueError, match="as many seeds, found 1"):
        run(model, PROMPTS, seeds=[1])
    for wrong in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature must be finite"):
            run(model, PROMPTS, temperature=wrong)
    with pytest.raises(ModelError, match="not finite numbers"):
        draw(torch.tensor([[0.0, torch.nan]]), torch.tensor([0.5], dtype=torch.float64), temperature=1.0)


def test_equal_prompts_of_a_batch_go_through_the_model_once(model: Any) -> None:
    prompts = [PROMPTS[2]] * 6 + [PROMPTS[5]] * 3
    settings: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 1, "end_ids": set(), "pad_id": 0}
    made = sample(model, prompts, seeds=list(range(9)), token_budget=1000, **settings)
    assert made.tokens == 2 * 5
    alone = [sample(model, [prompt], seeds=[seed], **settings).outputs[0] for seed, prompt in enumerate(prompts)]
    assert made.outputs == alone


def test_each_prompt_may_have_its_own_temperature_and_top_p(model: Any) -> None:
    settings = {"temperature": [0.0, 1.0, 0.5, 2.0, 1.0, 0.0], "top_p": [1.0, 0.0, 0.7, 1.0, 0.3, 0.5]}
    together = run(model, PROMPTS, **settings)
    alone = [
        run(model, [prompt], seeds=[i], temperature=settings["temperature"][i], top_p=settings["top_p"][i])[0]
        for i, prompt in enumerate(PROMPTS)
    ]
    assert together == alone
    likeliest = greedy(model, PROMPTS, max_new_tokens=12, end_ids={1, 2}, pad_id=0).outputs
    assert [together[i] for i in (0, 1, 5)] == [likeliest[i] for i in (0, 1, 5)]


def test_log_probabilities_are_the_models_own_and_count_the_end_token(model: Any) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 9, "end_ids": {1, 2, 3, 4}, "pad_id": 0, "seeds": list(range(6))}
    made = sample(model, PROMPTS, temperature=0.7, top_p=0.9, **settings)
    for prompt, output, logp in zip(PROMPTS, made.outputs, made.logps, strict=True):
        with torch.no_grad():
            logps = model(torch.tensor([prompt + output.token])).logits[0, len(prompt) - 1 :].log_softmax(-1)
        said = sum(float(logps[place, token]) for place, token in enumerate(output.token))
        ends = logps[len(output.token), 1:5]
        if output.ended:
            # Which of the end tokens it was is not kept.
            assert any(logp == pytest.approx(said + float(end), abs=1e-3) for end in ends)
        else:
            assert logp == pytest.approx(said, abs=1e-3)


@given(
    weights=st.lists(st.integers(0, 5), min_size=2, max_size=8).filter(any),
    top_p=st.floats(0, 1),
    temperature=st.floats(0.25, 4),
)
def test_top_p_keeps_the_fewest_likeliest_tokens(weights: list[int], top_p: float, temperature: float) -> None:
    logits = torch.tensor([weights], dtype=torch.float64).log()
    probs = torch.softmax(logits / temperature, -1)[0].tolist()
    kept: list[int] = []
    for token in sorted(range(len(probs)), key=lambda i: (-probs[i], i)):
        if not kept or sum(probs[i] for i in kept) < top_p - 1e-12:
            kept.append(token)
    grid = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
    counts = draw(logits.expand(4096, -1), grid, temperature=temperature, top_p=top_p).bincount(minlength=len(weights))
    whole = sum(probs[i] for i in kept)
    for token, count in enumerate(counts.tolist()):
        share = probs[token] / whole if token in kept else 0.0
        # Where the kept ones add up to top-p but for rounding, one more may be kept.
        assert abs(count / 4096 - share) <= 2 / 4096 or abs(whole - top_p) < 1e-9


def test_wrong_top_p(model: Any) -> None:
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"top-p must lie in \[0, 1\]"):
            run(model, PROMPTS, top_p=wrong)
    with pytest.raises(ValueError, match="as many temperatures, found 2"):
        run(model, PROMPTS, temperature=[1.0, 0.5])
