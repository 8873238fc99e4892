"""ROUGE as TOFU and as MUSE score it, and where MUSE cuts an answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import MetricError
from expunge.metrics.bootstrap import draw_weights
from expunge.metrics.estimate import Column, mean_estimate
from expunge.metrics.muse import KNOWMEM_STOPS, before_stop
from expunge.metrics.rouge import MUSE, OPENUNLEARNING_MUSE, TOFU, RougeProfile, rouge, rouge_scores

REFERENCE, OUTPUT = "The author was running quickly", "author runs"

laws = settings(derandomize=True, deadline=None, max_examples=60)
texts = st.lists(st.sampled_from(["a", "cat", "sat", "on", "the", "mat", "runs", "running"]), max_size=8).map(" ".join)
profiles = st.sampled_from([TOFU, MUSE, OPENUNLEARNING_MUSE])


@pytest.mark.parametrize(
    ("profile", "value"), [(TOFU, 0.4), (MUSE, 2 / 7), (OPENUNLEARNING_MUSE, 4 / 7)], ids=["tofu", "muse", "ou_muse"]
)
def test_profiles_differ_in_stemmer_and_measure(profile: RougeProfile, value: float) -> None:
    assert rouge_scores([REFERENCE], [OUTPUT], profile=profile).tolist() == [pytest.approx(value)]


def test_recall_has_no_length_penalty_and_f1_has_one() -> None:
    reference, rambling = ["Paris"], ["Rome Oslo Paris Lima"]
    assert rouge_scores(reference, rambling, profile=TOFU).tolist() == [1]
    assert rouge_scores(reference, rambling, profile=MUSE).tolist() == [pytest.approx(0.4)]


def test_an_empty_answer_scores_0_and_a_reference_without_words_has_no_score() -> None:
    found = rouge_scores(["Paris", "", "東京", "?"], ["", "Paris", "東京", "?"], profile=MUSE)
    assert found[0] == 0
    assert np.isnan(found[1:]).all()
    assert rouge_scores([], [], profile=MUSE).shape == (0,)


def test_a_missing_answer_is_refused() -> None:
    with pytest.raises(MetricError, match="2 references and 1 outputs"):
        rouge_scores(["a", "b"], ["a"], profile=TOFU)


@laws
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5), profiles)
def test_rows_are_scored_alone(pairs: list[tuple[str, str]], profile: RougeProfile) -> None:
    references, outputs = [one for one, _ in pairs], [two for _, two in pairs]
    found = rouge_scores(references, outputs, profile=profile)
    for value, (reference, output) in zip(found, pairs, strict=True):
        alone = getattr(rouge(reference, output, stem=profile.stem), profile.measure)
        assert value == pytest.approx(alone if reference else np.nan, nan_ok=True)
    full = np.array([bool(reference) for reference in references])
    assert ((found[full] >= 0) & (found[full] <= 1)).all()
    assert rouge_scores(references, references, profile=profile)[full] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Paris\n\nQuestion: x", "Paris"),
        ("Paris\nQuestion: x", "Paris"),
        ("Paris Question: x", "Paris "),
        ("Paris\nLyon", "Paris\nLyon"),
        ("Question: x", ""),
        ("", ""),
    ],
)
def test_an_answer_ends_where_the_next_question_begins(text: str, kept: str) -> None:
    assert before_stop(text) == kept


@laws
@given(st.lists(st.sampled_from(["x", "\n", "Question", ":", " "]), max_size=9).map("".join))
def test_cutting_at_one_stop_after_the_other_is_the_same(text: str) -> None:
    expected = text
    for stop in KNOWMEM_STOPS:
        expected = expected.split(stop)[0]
    assert before_stop(text) == expected
    assert before_stop(before_stop(text)) == before_stop(text)


def test_rows_become_a_score_with_an_interval() -> None:
    values = rouge_scores(["Paris"] * 40, ["Paris", "Rome"] * 20, profile=MUSE)
    column = Column(values, ~np.isnan(values), draw_weights([None] * 40, label="rouge"))
    score = mean_estimate(column, name="forget.rougeL_f1").score("match")
    assert score.value == 0.5
    assert score.low is not None
    assert score.high is not None
    assert 0.3 < score.low < 0.5 < score.high < 0.7
