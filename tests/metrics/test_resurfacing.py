"""What rose again after it was forgotten: the largest later rise, with the interval of that pair."""

from __future__ import annotations

import numpy as np
import pytest

from expunge.errors import MetricError
from expunge.metrics.resurfacing import largest_rise, stage_score, units

PEOPLE = [f"p{i // 4}" for i in range(40)]


def flat(value: float, *, rows: int = 40) -> np.ndarray:
    return np.full(rows, value) + 0.01 * np.sin(np.arange(rows))


def test_the_rise_is_from_the_lowest_point_before_to_the_highest_after() -> None:
    rise = largest_rise([flat(0.3), flat(0.1), flat(0.2), flat(0.6), flat(0.05)], PEOPLE, first=2, label="x")
    assert rise.value == pytest.approx(0.5)
    assert (rise.since, rise.until) == (3, 5)
    assert rise.low == pytest.approx(0.5)
    assert rise.high == pytest.approx(0.5)
    assert rise.resurfaced


def test_what_only_falls_did_not_rise() -> None:
    rise = largest_rise([flat(0.3), flat(0.3), flat(0.2)], PEOPLE, first=1, label="x")
    assert (rise.value, rise.low, rise.high) == (0, None, None)
    assert rise.since == rise.until == 3
    assert not rise.resurfaced


def test_the_last_request_has_nothing_after_it() -> None:
    rise = largest_rise([flat(0.9)], PEOPLE, first=4, label="x")
    assert (rise.value, rise.since, rise.until, rise.resurfaced) == (0, 4, 4, False)


def test_a_rise_that_the_choice_of_people_explains_is_not_called_one() -> None:
    later = flat(0.1)
    later[:4] += 1  # one person of ten
    rise = largest_rise([flat(0.1), later], PEOPLE, first=1, label="x")
    assert rise.value == pytest.approx(0.1)
    assert rise.low == 0
    assert not rise.resurfaced


def test_of_one_person_rows_are_resampled() -> None:
    assert units(["a", "a", "b"]) == ["a", "a", "b"]
    assert units(["a", "a"]) == [None, None]
    rise = largest_rise([flat(0.1, rows=8), flat(0.4, rows=8)], ["a"] * 8, first=1, label="x")
    assert rise.low == pytest.approx(0.3)


def test_one_row_has_no_interval_and_counts_by_its_sign() -> None:
    rise = largest_rise([np.array([0.0]), np.array([0.5])], ["a"], first=1, label="x")
    assert (rise.value, rise.low, rise.resurfaced) == (0.5, None, True)


def test_rows_without_tokens_are_left_out_of_a_rise() -> None:
    early, late = flat(0.1), flat(0.3)
    early[0] = late[0] = np.nan
    rise = largest_rise([early, late], PEOPLE, first=1, label="x")
    assert rise.value == pytest.approx(0.2)
    assert rise.low == pytest.approx(0.2)


def test_a_score_says_how_many_rows_it_has() -> None:
    values = np.append(flat(0.5, rows=199), np.nan)
    found = stage_score(values, ["a"] * 200, label="request_1", direction="lower")
    assert (found.n, found.n_total, found.direction) == (199, 200, "lower")
    assert found.low is not None
    values[:10] = np.nan
    with pytest.raises(MetricError, match="request_1: only 189 of 200 rows"):
        stage_score(values, ["a"] * 200, label="request_1", direction="lower")
