"""Decoding that starts behind what the trace knows gives the answers that decoding from the prompt gives."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.config.schema import ModelSection
from expunge.data.example import Example, Turn
from expunge.data.template import Template, build_template
from expunge.evals.drafts import SURE, Beginning, Draft, Place, beginnings, drafts_of
from expunge.evals.generate import GenerationPass, generation_table
from expunge.evals.jobs import plan_jobs
from expunge.evals.suite import Suite, SuiteData
from expunge.evals.suites.tofu import tofu
from expunge.evals.trace import token_stats, trace
from expunge.models.decode import end_ids
from expunge.models.load import load_model, load_tokenizer

LIKELY, UNLIKELY = SURE + 0.01, SURE - 0.01


@cache
def loaded(folder: str) -> tuple[Any, Any, Template]:
    model = load_model(ModelSection(model_name_or_path=folder), device=torch.device("cpu")).model
    tokenizer = load_tokenizer(folder)
    return model, tokenizer, build_template("auto", tokenizer)


@pytest.fixture(scope="module")
def subject(shared: Path) -> tuple[Any, Any, Template]:
    return loaded(str(shared / "models/tofu_tiny_full"))


@pytest.fixture(scope="module")
def suite(shared: Path) -> Suite:
    """Rows of which the model knows some answers by heart."""
    published = tofu(SuiteData(tofu=str(shared / "data/tofu"), limit=64))
    kept = [split for split in published.splits if split.name in ("forget", "holdout")]
    forget, holdout = (replace(split, variants=("answer",)) for split in kept)
    return replace(published, splits=(forget, replace(holdout, examples=holdout.examples[:8])))


def answers(subject: tuple[Any, Any, Template], suite: Suite, **settings: Any) -> GenerationPass:
    model, tokenizer, template = subject
    return generation_table(model, suite, template, tokenizer, end_ids=end_ids(model, template), pad_id=0, **settings)


def traced(subject: tuple[Any, Any, Template], suite: Suite, budget: int = 2048) -> pa.Table:
    model, _, template = subject
    return trace(model, plan_jobs(suite, template, max_length=512), pad_id=0, token_budget=budget).table


@pytest.mark.slow
def test_drafts_change_the_cost_of_the_answers_and_nothing_else(subject: Any, suite: Suite) -> None:
    short = replace(suite, max_new_tokens=50)
    drafts = drafts_of(traced(subject, short))
    with_drafts, without = answers(subject, short, drafts=drafts), answers(subject, short)
    assert with_drafts.table.equals(without.table)
    assert with_drafts.tokens < 0.95 * without.tokens


@pytest.mark.parametrize("limits", [{"total_length": 45}, {"max_new_tokens": 5}, {"max_new_tokens": 0}])
def test_drafts_respect_limits(subject: Any, suite: Suite, limits: dict[str, int]) -> None:
    forget = suite.splits[0]
    short = replace(suite, splits=(replace(forget, examples=forget.examples[:16]),))
    if "max_new_tokens" in limits:
        short, limits = replace(short, max_new_tokens=limits["max_new_tokens"]), {}
    drafts = drafts_of(traced(subject, short))
    assert answers(subject, short, drafts=drafts, **limits).table.equals(answers(subject, short, **limits).table)


def test_batches_of_1_and_of_64_give_equal_tables(subject: Any, suite: Suite) -> None:
    short = replace(suite, max_new_tokens=10)
    alone, together = (traced(subject, short, budget) for budget in (1, 64 * 512))
    for name in alone.column_names:
        one, two = alone[name].to_pylist(), together[name].to_pylist()
        if name in ("logp", "lse", "mu", "var"):
            for a, b in zip(one, two, strict=True):
                assert (a is None) == (b is None)
                assert a is None or np.allclose(a, b, rtol=1e-4, atol=1e-4), name
        else:
            assert one == two, name
    first, second = (
        answers(subject, short, drafts=drafts_of(table), token_budget=budget).table
        for table, budget in ((alone, 1), (together, 64 * 512))
    )
    assert first.equals(second)


def row(split: str, variant: str, hit: list[bool], logp: list[float]) -> dict[str, Any]:
    token = list(range(10, 10 + len(hit)))
    return {"split": split, "row": 0, "variant": variant, "num_prompt": 3, "token": token, "hit": hit, "logp": logp}


def test_only_answers_and_only_tokens_the_model_is_sure_of_are_drafts() -> None:
    table = pa.Table.from_pylist(
        [
            row("all", "answer", [True] * 3, [LIKELY] * 3),
            row("miss", "answer", [True, False, True], [LIKELY] * 3),
            row("unsure", "answer", [True, True, True], [LIKELY, LIKELY, UNLIKELY]),
            row("none", "answer", [False, True], [LIKELY] * 2),
            row("nan", "answer", [True, True], [float("nan"), LIKELY]),
            row("perturbed", "perturbed_0", [True] * 3, [LIKELY] * 3),
        ]
    )
    assert drafts_of(table) == {
        Place("all", 0): Draft(3, [10, 11, 12]),
        Place("miss", 0): Draft(3, [10]),
        Place("unsure", 0): Draft(3, [10, 11]),
    }


def begun(subject: Any, *, ids: Any, limit: int = 100, ends: set[int] | None = None, other: bool = False) -> Beginning:
    """Where decoding starts with the tokens `ids` selects of a traced answer as the draft."""
    _, _, template = subject
    example = Example("a", 0, (Turn("user", "Who?"), Turn("assistant", "A painter from Lisbon.")))
    prompt = template.prompt_ids(example.prompt)
    encoded = template.encode(example).input_ids.tolist()
    draft = Draft(len(prompt), ids(encoded[len(prompt) :]))
    asked = [*prompt[:-1], prompt[-1] + 1] if other else prompt
    return beginnings([example], [draft], [asked], template, limits=[limit], end_ids=ends or template.end_ids)[0]


def test_decoding_starts_behind_the_draft(subject: Any) -> None:
    whole = begun(subject, ids=lambda answer: answer)
    assert whole.ended
    assert begun(subject, ids=lambda answer: answer[:-1]) == Beginning(whole.token, False)
    assert begun(subject, ids=lambda answer: answer[:2]) == Beginning(whole.token[:2], False)


def test_an_end_counts_only_within_the_limit(subject: Any) -> None:
    whole = begun(subject, ids=lambda answer: answer)
    length = len(whole.token)
    assert begun(subject, ids=lambda answer: answer, limit=length + 1).ended
    assert begun(subject, ids=lambda answer: answer, limit=length) == Beginning(whole.token, False)
    assert begun(subject, ids=lambda answer: answer, limit=1) == Beginning(whole.token[:1], False)
    assert begun(subject, ids=lambda answer: answer, ends={whole.token[1]}) == Beginning(whole.token[:1], True)


def test_a_draft_behind_other_tokens_is_not_used(subject: Any) -> None:
    assert begun(subject, ids=lambda answer: answer, other=True) == Beginning([], False)


def test_a_raw_text_has_no_draft(subject: Any) -> None:
    text = Example("a", 0, text="A painter from Lisbon.")
    found = beginnings([text], [Draft(0, [5])], [[]], subject[2], limits=[9], end_ids=subject[2].end_ids)
    assert found == [Beginning([], False)]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_hit_is_the_lowest_of_the_largest_logits(data: st.DataObject) -> None:
    width = data.draw(st.integers(1, 5))
    rows = data.draw(st.lists(st.lists(st.integers(-2, 2), min_size=width, max_size=width), min_size=1, max_size=6))
    target = [data.draw(st.integers(0, width - 1)) for _ in rows]
    found = token_stats(torch.tensor(rows, dtype=torch.float32), torch.tensor(target), moments=data.draw(st.booleans()))
    assert found.hit.tolist() == [int(np.argmax(each)) == y for each, y in zip(rows, target, strict=True)]
