"""The verdict's rules, at their boundaries."""

from __future__ import annotations

import pytest
from fake_runs import RETRAINED, START, UNLEARNED, score
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.metrics.score import Score
from expunge.report.verdict import FORGET, KEPT, RETAIN, Verdict, judge

SHARE = st.floats(0, 1)


def es(value: float, low: float | None = None, high: float | None = None) -> Score:
    return Score(value, value if low is None else low, value if high is None else high, 10, 10, None, "lower")


BEFORE = {FORGET: es(0.9, 0.85, 0.95), RETAIN: es(0.8, 0.7, 0.9)}
NEVER = {FORGET: es(0.05, 0.02, 0.1), RETAIN: es(0.8, 0.7, 0.9)}


CLOZE_BEFORE = {"forget_cloze.extraction_strength": es(0.8)}
CLOZE_NEVER = {"forget_cloze.extraction_strength": es(0.05)}


def after(forget: float, retain: float, **forms: float) -> dict[str, Score]:
    other = {f"forget_{form}.extraction_strength": es(value) for form, value in forms.items()}
    return {FORGET: es(forget), RETAIN: es(retain), **other}


@pytest.mark.parametrize(
    ("forget", "retain", "word"),
    [
        (0.05, 0.8, "forgotten"),
        (0.1, 0.8, "forgotten"),  # the retrained model's upper end itself
        (0.1001, 0.8, "partly forgotten"),
        (0.0, 0.8, "forgotten"),
        (0.8499, 0.8, "partly forgotten"),
        (0.85, 0.8, "intact"),  # the starting model's lower end itself
        (0.99, 0.8, "intact"),
        (0.05, 0.72, "forgotten"),  # nine tenths exactly
        (0.05, 0.7199, "damaged"),
        (0.9, 0.5, "damaged"),
    ],
)
def test_each_word_at_its_boundary(forget: float, retain: float, word: str) -> None:
    found = judge(after(forget, retain), BEFORE, NEVER)
    assert found.word == word
    assert len(found.checks) == 3
    assert found.sentence.endswith(".")


@pytest.mark.parametrize(
    ("cloze", "word", "met"),
    [
        (0.05, "forgotten", True),
        (0.125, "forgotten", True),  # a tenth of the way from 0.05 to 0.8
        (0.1251, "suppressed only", False),
        (0.9, "suppressed only", False),
    ],
)
def test_another_form_that_is_not_low_makes_it_suppressed(cloze: float, word: str, met: bool) -> None:
    found = judge(after(0.05, 0.8, cloze=cloze), BEFORE | CLOZE_BEFORE, NEVER | CLOZE_NEVER)
    assert found.word == word
    assert found.checks[2].met is met
    assert ("as a gap to fill" in found.sentence) is not met


def test_a_form_is_compared_with_the_retrained_models_interval_where_it_is_wider() -> None:
    never = NEVER | {"forget_cloze.extraction_strength": es(0.05, 0, 0.3)}
    assert judge(after(0.05, 0.8, cloze=0.3), BEFORE | CLOZE_BEFORE, never).word == "forgotten"
    assert judge(after(0.05, 0.8, cloze=0.31), BEFORE | CLOZE_BEFORE, never).word == "suppressed only"


def test_a_form_that_is_low_but_above_the_retrained_model_is_remarked() -> None:
    remarks = [
        judge(after(0.05, 0.8, cloze=cloze), BEFORE | CLOZE_BEFORE, NEVER | CLOZE_NEVER).remarks
        for cloze in (0.05, 0.1)
    ]
    assert remarks == [
        (),
        ("A little more than in the retrained model comes out as a gap to fill (0.100 against 0.050).",),
    ]


def test_a_form_without_a_yardstick_is_not_judged() -> None:
    found = judge(after(0.05, 0.8, cloze=0.9), BEFORE | CLOZE_BEFORE, NEVER)
    assert found.word == "forgotten"
    assert "the one form" in found.sentence


def test_saying_less_than_a_retrained_model_is_remarked() -> None:
    assert any("avoids" in remark for remark in judge(after(0.01, 0.8), BEFORE, NEVER).remarks)
    assert not any("avoids" in remark for remark in judge(after(0.02, 0.8), BEFORE, NEVER).remarks)


@pytest.mark.parametrize(("start", "retrained"), [(None, NEVER), (BEFORE, None), (None, None)])
def test_without_a_yardstick_there_is_no_verdict(
    start: dict[str, Score] | None, retrained: dict[str, Score] | None
) -> None:
    found = judge(after(0.05, 0.8), start, retrained, missing=["expunge eval X"])
    assert (found.word, found.checks, found.missing) == ("none", (), ("expunge eval X",))
    assert ("starting" in found.sentence) is (start is None)
    assert ("retrained" in found.sentence) is (retrained is None)


def test_a_metric_that_was_not_measured_gives_no_verdict() -> None:
    found = judge({FORGET: es(0.1)}, BEFORE, NEVER)
    assert found.word == "none"
    assert RETAIN in found.sentence
    assert judge(after(0.1, 0.8), BEFORE, {FORGET: NEVER[FORGET]}).word == "forgotten"


def test_a_model_that_knew_nothing_has_nothing_to_forget() -> None:
    found = judge(after(0.05, 0.8), BEFORE | {FORGET: es(0.1)}, NEVER)
    assert found.word == "none"
    assert "did not know" in found.sentence


def scores(values: dict[str, float]) -> dict[str, Score]:
    return {f"{split}.extraction_strength": score(value) for split, value in values.items()}


@settings(derandomize=True, max_examples=200)
@given(forget=SHARE, retain=SHARE, less=SHARE)
def test_forgetting_more_or_keeping_more_is_never_worse(forget: float, retain: float, less: float) -> None:
    rank = {"damaged": 0, "intact": 1, "partly forgotten": 2, "forgotten": 3}
    here = judge(after(forget, retain), BEFORE, NEVER).word
    assert rank[judge(after(forget * less, retain), BEFORE, NEVER).word] >= rank[here]
    if here != "damaged":
        assert judge(after(forget, max(retain, retain / max(less, 0.01))), BEFORE, NEVER).word == here


@settings(derandomize=True, max_examples=100)
@given(forget=SHARE, retain=SHARE)
def test_the_checks_say_what_the_word_says(forget: float, retain: float) -> None:
    found: Verdict = judge(after(forget, retain), BEFORE, NEVER)
    changed, reached, kept = (check.met for check in found.checks)
    assert kept is (retain >= KEPT * 0.8 - 1e-12)
    assert (found.word == "damaged") is not kept
    assert (found.word == "forgotten") is (changed and reached and kept)


def test_the_made_up_runs_are_forgotten() -> None:
    assert judge(scores(UNLEARNED), scores(START), scores(RETRAINED)).word == "forgotten"
