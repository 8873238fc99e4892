"""Numbers and texts as people read them."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.metrics.registry import find_metric
from expunge.metrics.score import Score
from expunge.report.examples import is_broken
from expunge.report.numbers import count, in_unit, interval, number, percent, plural, rows
from expunge.report.text import LONGEST, shown, visible
from expunge.report.withheld import is_forget
from expunge.report.words import GROUPS


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (1.0, "1"),
        (0.12345, "0.123"),
        (0.9996, "1.000"),
        (1.8e-8, "1.8\u00a0×\u00a010⁻⁸"),
        (-0.0001, "−1.0\u00a0×\u00a010⁻⁴"),
        (-23.64, "−23.6"),
        (12345.6, "12\u202f346"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


def test_units_intervals_and_rows() -> None:
    score = Score(0.97, 0.9, 1.0, 398, 400, 1.0, "higher")
    assert in_unit("guard.refusal_rate", score.value) == "97\u00a0%"
    assert interval("guard.refusal_rate", score) == "[90\u00a0%, 100\u00a0%]"
    assert interval("forget_quality", score._replace(low=None)) == ""
    assert rows(score) == "398 of 400"
    assert (percent(None), percent(0.9625), count(1600)) == ("–", "96.2\u00a0%", "1\u202f600")
    assert (plural(1, "row"), plural(0, "row")) == ("1 row", "0 rows")


@settings(derandomize=True)
@given(st.text())
def test_nothing_invisible_is_left(text: str) -> None:
    left = {c for c in visible(text) if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    assert left <= {"\n", "\u200c", "\u200d"}


def test_directions_and_controls_are_written_out() -> None:
    assert visible("a\u202eb\x1b[0m") == "a‹U+202E›b‹U+001B›[0m"
    assert visible("क्\u200dष\r\n") == "क्\u200dष\n"


def test_long_and_empty_texts_say_so() -> None:
    cut = shown("x" * (LONGEST + 1500))
    assert cut.text == "x" * LONGEST + " …"
    assert cut.note == "cut: 1\u202f500 more characters"
    assert shown("  ").note == "the answer is white space only"
    assert shown("").text is None


@pytest.mark.parametrize(
    ("text", "ended", "broken"),
    [
        ("He was born in Oslo.", True, False),
        ("He was born in Oslo.", False, True),
        ("", True, True),
        ("very very very good", True, True),
        ("a b a b a b a b a b", True, True),
    ],
)
def test_what_counts_as_unreadable(text: str, ended: bool, broken: bool) -> None:
    assert is_broken(text, ended=ended) is broken


def test_which_splits_hold_forgotten_text() -> None:
    assert [split for split in ("forget", "forget_multi_hop", "retain", "forgetful") if is_forget(split)] == [
        "forget",
        "forget_multi_hop",
    ]


def test_what_has_plain_words_is_a_metric() -> None:
    names = [row.metric for group in GROUPS for row in group.rows]
    assert len(set(names)) == len(names)
    assert [name for name in names if find_metric(name) is None] == []
