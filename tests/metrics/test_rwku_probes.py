"""RWKU's ROUGE-L recall: words between white space, sentences between full stops, each word once."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import MetricError
from expunge.metrics.rwku import probe_recall

laws = settings(derandomize=True, deadline=None, max_examples=60)
word_lists = st.lists(st.sampled_from("abcde"), max_size=6)


@pytest.mark.parametrize(
    ("reference", "output", "expected"),
    [
        ("Stephen King", "It is Stephen King.", 1),
        ("Stephen King", "King Stephen", 1 / 2),
        ("Carrie", "carrie", 0),
        ("Carrie", "Carrie, of course", 0),
        ("the cat the dog", "the dog", 2 / 3),
        ("w1 w2 w3 w4 w5", "w1 w2 w6 w7 w8. w1 w3 w8 w9 w5", 4 / 5),
        ("One. Two", "Two. One", 1),
        ("Paris", "", 0),
        ("Paris", " . ", 0),
    ],
)
def test_by_hand(reference: str, output: str, expected: float) -> None:
    assert probe_recall([reference], [output]).tolist() == [pytest.approx(expected)]


def test_a_reference_without_words_has_no_score() -> None:
    assert np.isnan(probe_recall(["", " . "], ["Paris", ""])).all()
    with pytest.raises(MetricError, match="2 references and 1 outputs"):
        probe_recall(["a", "b"], ["a"])


def longest(ours: list[str], theirs: list[str]) -> int:
    """By trying every subsequence."""
    for size in range(len(ours), 0, -1):
        for chosen in combinations(ours, size):
            rest = iter(theirs)
            if all(word in rest for word in chosen):
                return size
    return 0


@laws
@given(st.lists(st.sampled_from("abcde"), unique=True, min_size=1), word_lists)
def test_distinct_words_of_one_sentence_are_counted_by_the_longest_subsequence(
    reference: list[str], output: list[str]
) -> None:
    found = probe_recall([" ".join(reference)], [" ".join(output)])[0]
    assert found == pytest.approx(longest(reference, output) / len(reference))


@laws
@given(word_lists, word_lists)
def test_it_is_a_share_and_whole_for_the_answer_itself(reference: list[str], output: list[str]) -> None:
    text = " ".join(reference)
    found = probe_recall([text, text], [" ".join(output), f"I think {text}. Or not."])
    if reference:
        assert 0 <= found[0] <= 1
        assert found[1] == 1
    else:
        assert np.isnan(found).all()


def test_every_real_probe_can_be_scored(shared: Path) -> None:
    text = (shared / "data" / "rwku" / "forget_level2.jsonl").read_text(encoding="utf-8")
    answers = [json.loads(line)["answer"] for line in text.splitlines()]
    assert len(answers) == 2879
    assert probe_recall(answers, answers) == pytest.approx(1.0)
