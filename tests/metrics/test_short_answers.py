"""Short answers against what is accepted, and personal data in answers: by hand, and their laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import MetricError
from expunge.metrics.answers import exact_match, final_answer, final_match, token_f1
from expunge.metrics.pii import given_away

WORDS = st.lists(st.sampled_from(["red", "ball", "Tallinn", "the", "17/05/1986"]), max_size=5).map(" ".join)


def test_case_punctuation_and_articles_do_not_count() -> None:
    accepted = [["Mira Solen", "Solen"]] * 4
    outputs = ["the Solen.", "MIRA SOLEN", "Solen Mira", ""]
    assert exact_match(accepted, outputs).tolist() == [1, 1, 0, 0]
    # 2 of 3 words said, 2 of 2 wanted; and at the best accepted answer.
    assert token_f1([["Mira Solen"], ["x", "Mira"]], ["it is Mira Solen", "Mira"]).tolist() == pytest.approx([2 / 3, 1])
    assert np.isnan(exact_match([["the", "!"]], ["the"])).all()


def test_the_answer_after_a_chain_of_thought() -> None:
    assert final_answer("Ann lies. So the answer is No. Q: next") == "No"
    assert final_answer("The answer is 3.5\nQ: next") == "3.5"
    assert final_answer(" No ") == "No"
    assert final_match(
        ["(A)", "(A)", "False", "> )"], ["so the answer is (a).", "(B)", "the answer is True.", "answer is: >  )"]
    ).tolist() == [1, 0, 0, 1]


def test_a_string_is_given_away_by_its_words_in_order() -> None:
    row = ["Calle Trujillo 12", "17/05/1986"]
    outputs = [
        "Eduardo was born on 17/05/1986 and lives at calle Trujillo 12.",
        "He lives at Calle Trujillo, house 12!",
        "12 Trujillo, Calle",
        "",
    ]
    assert given_away([row] * 4, outputs).tolist() == [1, 0.5, 0, 0]
    assert given_away([["€932.71 on 03/05/2019"]], ["It was €932.71, which occurred on 03/05/2019."]).tolist() == [1]
    assert given_away([["u.eze92"]], ["Her handle is @u.eze92."]).tolist() == [1]
    assert np.isnan(given_away([[], ["--"]], ["a", "b"])).all()


@settings(derandomize=True, deadline=None, max_examples=80)
@given(WORDS, WORDS)
def test_more_words_give_no_less_away(answer: str, more: str) -> None:
    strings = [["red ball", "Tallinn", "17/05/1986"]]
    part, whole = given_away(strings, [answer])[0], given_away(strings, [f"{more} {answer} {more}"])[0]
    assert 0 <= part <= whole <= 1


@settings(derandomize=True, deadline=None, max_examples=80)
@given(WORDS, WORDS)
def test_an_exact_answer_has_every_word(answer: str, output: str) -> None:
    exact, f1 = exact_match([[answer]], [output])[0], token_f1([[answer]], [output])[0]
    if not np.isnan(exact):
        assert exact <= f1 <= 1
        assert exact_match([[answer]], [answer])[0] == token_f1([[answer]], [answer])[0] == 1


def test_rows_must_pair() -> None:
    for score in (exact_match, token_f1, given_away):
        with pytest.raises(MetricError, match="2 rows and 1 outputs"):
            score([["a"], ["b"]], ["a"])
    with pytest.raises(MetricError, match="0 rows and 1 outputs"):
        final_match([], ["a"])
