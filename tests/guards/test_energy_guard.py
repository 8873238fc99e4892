"""The energy guard: which energies it sees, what it refuses, and what a person gets to read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from asked import questions

from expunge.data.example import Example, Turn
from expunge.errors import MetricError, UsageError
from expunge.evals.jobs import plan_jobs
from expunge.evals.suite import Measured, Split, Suite
from expunge.evals.trace import trace
from expunge.guards.base import Guard, Reply, Subject
from expunge.guards.energy import DEFAULT_REFUSAL, DRAFT_TOKENS, EnergyGuard, Settings, prompt_energies
from expunge.guards.record import STATISTICS, Statistic
from expunge.models.lse import tail_lse
from expunge.testing.tiny import tiny_llama

HALF = Settings(rate=0.5)
"""Needs 20 calibration prompts."""


def logits(subject: Subject, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return subject.model(input_ids=torch.tensor([ids])).logits[0].double()


def one_by_one(subject: Subject, prompt: str, statistic: Statistic, temperature: float) -> float:
    """The definition, a position at a time."""
    ids = subject.template.prompt_ids([Turn("user", prompt)])
    if statistic == "prompt":
        seen = list(logits(subject, ids))
    else:
        seen, ends = [], subject.template.end_ids | set(subject.model.generation_config.eos_token_id)
        for _ in range(DRAFT_TOKENS if statistic == "generated" else 1):
            seen.append(logits(subject, ids)[-1])
            ids = [*ids, int(seen[-1].argmax())]
            if ids[-1] in ends:
                break
    return float(np.mean([-temperature * float((z / temperature).logsumexp(-1)) for z in seen]))


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_energies_are_those_of_the_definition(subject: Subject, statistic: Statistic, temperature: float) -> None:
    prompts = [*questions(9), "Who?"]
    found = prompt_energies(subject, prompts, statistic=statistic, temperature=temperature)
    expected = [one_by_one(subject, prompt, statistic, temperature) for prompt in prompts]
    assert found == pytest.approx(expected, abs=2e-5)


def test_drafts_of_all_lengths_are_among_them(subject: Subject) -> None:
    drafts = subject.answer(subject.prompt_ids(questions(30)), max_new_tokens=DRAFT_TOKENS)
    assert {draft.ended for draft in drafts} == {True, False}


def test_the_last_token_s_energy_is_the_trace_s(subject: Subject) -> None:
    prompts = questions(10)
    examples = tuple(
        Example(f"q:{row}", row, (Turn("user", text), Turn("assistant", "In Tallinn.")))
        for row, text in enumerate(prompts)
    )
    suite = Suite("own", (Split("retain", examples),), lambda *args, **kwargs: Measured({}, {}))
    plan = plan_jobs(suite, subject.template, max_length=512)
    table = trace(subject.model, plan, pad_id=0, token_budget=200).table
    traced = [-values[0] for values in table["lse"].to_pylist()]
    assert prompt_energies(subject, prompts) == pytest.approx(traced, abs=1e-5)


@pytest.mark.parametrize("held", [1, 7, 40, 1000])
def test_pieces_give_what_the_whole_gives(subject: Subject, held: int) -> None:
    rows = subject.prompt_ids([*questions(5), "Who?", "Where was it, and was it in the Silent Harbour?"])
    starts = [0, 3, len(rows[2]) - 1, 0, 5, 1, 2]
    bytes_held = 4 * held * len(subject.tokenizer)
    whole = tail_lse(subject.model, rows, starts, pad_id=0)
    pieces = tail_lse(subject.model, rows, starts, pad_id=0, token_budget=100, logit_bytes=bytes_held)
    for one, two, row, start in zip(whole, pieces, rows, starts, strict=True):
        assert one.shape == (len(row) - start,)
        assert two == pytest.approx(one, abs=1e-5)


def test_progress_counts_prompts(subject: Subject) -> None:
    events: list[dict[str, Any]] = []
    prompt_energies(subject, questions(7), progress=events.append)
    assert events[-1] == {"event": "phase", "name": "energy", "done": 7, "total": 7}


# Calibration


def test_the_threshold_is_set_on_half_and_tested_on_the_other(subject: Subject) -> None:
    prompts = questions(45)
    guard = EnergyGuard.calibrate(subject, prompts, HALF)
    energies = prompt_energies(subject, prompts)
    record = guard.record
    assert record.threshold in energies.tolist()
    assert (record.num_calibration, record.over_refusal.n) == (22, 23)
    refused = sum(decision.refused for decision in guard.decide(prompts))
    assert refused == int((energies > record.threshold).sum())
    above = 22 - math.ceil(23 * 0.5)
    assert record.over_refusal.value == pytest.approx((refused - above) / 23)
    assert record.over_refusal.low <= record.over_refusal.value <= record.over_refusal.high


def test_repetitions_and_order_do_not_matter(subject: Subject) -> None:
    prompts = questions(45)
    guard = EnergyGuard.calibrate(subject, prompts, HALF)
    again = EnergyGuard.calibrate(subject, [*prompts[::-1], *prompts[:9]], HALF)
    assert again.record.threshold == pytest.approx(guard.record.threshold, abs=1e-5)
    assert again.record.over_refusal == guard.record.over_refusal


def test_too_few_prompts(subject: Subject) -> None:
    with pytest.raises(MetricError, match="50 % needs 20 calibration prompts, there are 19"):
        EnergyGuard.calibrate(subject, [*questions(39), *questions(39)], HALF)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(rate=0.0), "rate is 0"),
        (Settings(temperature=0.0), "temperature is 0"),
        (Settings(temperature=math.inf), "temperature is inf"),
        (Settings(statistic="lats"), "unknown statistic 'lats'"),  # type: ignore[arg-type]
        (Settings(refusals=()), "refusal is empty"),
        (Settings(refusals=("No.", "  ")), "refusal is empty"),
    ],
)
def test_settings_that_cannot_be_used(subject: Subject, settings: Settings, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EnergyGuard.calibrate(subject, questions(40), settings)


# Answering and refusing


def answers(subject: Subject, prompts: list[str]) -> list[str]:
    made = subject.answer(subject.prompt_ids(prompts), max_new_tokens=20)
    return [subject.text(output.token) for output in made]


@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_refused_prompt_shows_nothing_of_the_model(subject: Subject, statistic: Statistic) -> None:
    prompts = questions(45)
    guard = EnergyGuard.calibrate(subject, prompts, HALF._replace(statistic=statistic))
    replies = guard.generate(prompts, max_new_tokens=20)
    decisions = guard.decide(prompts)
    assert 0 < sum(reply.refused for reply in replies) < 45
    for reply, decision, own in zip(replies, decisions, answers(subject, prompts), strict=True):
        assert reply == Reply(DEFAULT_REFUSAL if decision.refused else own, decision.score, decision.refused)


def test_nobody_is_answered_below_every_energy(subject: Subject) -> None:
    guard = EnergyGuard.calibrate(subject, questions(45), HALF)
    strict = EnergyGuard(subject, guard.record.model_copy(update={"threshold": -1e9}))
    assert all(reply.text == DEFAULT_REFUSAL for reply in strict.generate(questions(3)))
    assert strict.generate([]) == []


def test_refusals_take_turns_by_prompt(subject: Subject) -> None:
    texts = ("I don't know.", "I can't say.")
    guard = EnergyGuard.calibrate(subject, questions(45), HALF._replace(refusals=texts))
    said = [guard.refusal(prompt) for prompt in questions(45)]
    assert set(said) == set(texts)
    assert said == [guard.refusal([Turn("user", prompt)]) for prompt in questions(45)]
    other = EnergyGuard(subject, guard.record.model_copy(update={"seed": 1}))
    assert said != [other.refusal(prompt) for prompt in questions(45)]


def test_a_conversation_is_a_prompt_too(subject: Subject) -> None:
    guard = EnergyGuard.calibrate(subject, questions(45), HALF)
    turns = [Turn("user", "Who wrote it?"), Turn("assistant", "Mira Solen."), Turn("user", "When?")]
    (alone,), (asked,) = guard.decide(["When?"]), guard.decide([turns])
    assert alone.score != asked.score


def test_it_is_a_guard(subject: Subject) -> None:
    guard: Guard = EnergyGuard.calibrate(subject, questions(45), HALF)
    assert guard.name == "energy"


# Bad input


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_an_empty_prompt(subject: Subject, prompt: str) -> None:
    with pytest.raises(UsageError, match="prompt 2 of 2 is empty"):
        prompt_energies(subject, ["Who?", prompt])
    with pytest.raises(UsageError, match="the question is empty"):
        prompt_energies(subject, [prompt])


def test_a_prompt_that_fills_the_context(subject: Subject) -> None:
    with pytest.raises(UsageError, match=r"prompt 2 has \d+ tokens, the model reads 512"):
        prompt_energies(subject, ["Who?", "Who wrote it? " * 200])


def test_an_answer_stays_within_the_context(subject: Subject) -> None:
    length = len(subject.prompt_ids(["Who?"])[0])
    model = tiny_llama(len(subject.tokenizer), max_position_embeddings=length + 3)
    (made,) = Subject(model, subject.tokenizer, subject.template).answer(
        subject.prompt_ids(["Who?"]), max_new_tokens=50
    )
    assert len(made.token) <= 3


def test_weights_that_are_not_numbers(subject: Subject) -> None:
    model = tiny_llama(len(subject.tokenizer))
    with torch.no_grad():
        model.lm_head.weight[5] = math.nan
    broken = Subject(model, subject.tokenizer, subject.template)
    with pytest.raises(MetricError, match="45 of 45 prompts is not a finite number"):
        EnergyGuard.calibrate(broken, questions(45), HALF)
    guard = EnergyGuard.calibrate(subject, questions(45), HALF)
    for statistic in STATISTICS:
        record = guard.record.model_copy(update={"statistic": statistic})
        with pytest.raises(MetricError, match="not a finite number"):
            EnergyGuard(broken, record).generate(["Who?"])
