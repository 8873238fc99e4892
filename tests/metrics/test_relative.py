"""Metrics relative to a starting model: the laws of the dependence index and of a ratio."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import MetricError
from expunge.metrics.bootstrap import draw_weights
from expunge.metrics.estimate import Column
from expunge.metrics.ragged import Array
from expunge.metrics.relative import (
    Change,
    above_chance,
    dependence_estimate,
    dependence_index,
    drop,
    ratio_estimate,
)

PEOPLE: list[str | None] = ["a", "a", "b", "b", "c", "c"]
shares = st.floats(0, 1)


def column(values: list[float], groups: list[str | None], *, label: str = "x") -> Column:
    found = np.array(values)
    return Column(found, ~np.isnan(found), draw_weights(groups, label=label))


def change(after: list[float], before: list[float], groups: list[str | None] | None = None) -> Change:
    people: list[str | None] = groups or PEOPLE[: len(after)]
    return Change(column(after, people), column(before, people), people)


def test_a_drop_is_a_share_and_never_negative() -> None:
    assert drop(np.array(0.2), np.array(0.8)) == pytest.approx(0.75)
    assert drop(np.array(0.9), np.array(0.8)) == 0
    assert np.isnan(drop(np.array(0.9), np.array(0.0)))


def test_the_index_by_hand() -> None:
    # Half of the direct drop reaches one form, more than all of it the other.
    assert dependence_index(np.array(0.8), np.array([0.4, 0.9])) == pytest.approx(0.25)


@settings(derandomize=True, deadline=None)
@given(st.floats(0.05, 1), st.lists(shares, min_size=1, max_size=5))
def test_laws_of_the_index(trained: float, others: list[float]) -> None:
    given_, rest = np.array(trained), np.array(others)
    index = dependence_index(given_, rest)
    assert 0 <= index <= 1
    assert dependence_index(given_, rest[::-1]) == pytest.approx(index)
    assert dependence_index(given_, np.full(len(others), trained)) == 0, "every form dropped alike"
    assert dependence_index(given_, np.zeros(len(others))) == 1, "only the trained form dropped"
    lower = dependence_index(given_, rest * 0.5)
    assert lower >= index, "less dropping elsewhere is more dependence"


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.lists(st.floats(0, 1), min_size=6, max_size=6), st.permutations(range(6)))
def test_an_estimate_does_not_depend_on_the_order_of_rows(after: list[float], order: list[int]) -> None:
    before = [0.9, 0.8, 0.7, 0.9, 0.8, 0.7]

    def of(picked: Array) -> Change:
        rows = [int(row) for row in picked]
        return change([after[row] for row in rows], [before[row] for row in rows], [PEOPLE[row] for row in rows])

    direct = change([0.1] * 6, before)
    one = dependence_estimate(direct, {"f": of(np.arange(6)), "g": of(np.arange(6))})
    moved = dependence_estimate(direct, {"g": of(np.array(order)), "f": of(np.array(order))})
    assert moved.value == pytest.approx(one.value)
    assert one.draws is not None
    assert moved.draws is not None
    assert np.allclose(np.sort(moved.draws), np.sort(one.draws))
    assert 0 <= one.value <= 1


def test_people_are_drawn_with_all_their_forms() -> None:
    """Every form of one person dropped and no form of the other: whoever is drawn, no form depends on another."""
    people: list[str | None] = ["a", "b"]
    forms = {"f": change([0.0, 0.8], [0.8, 0.8], people), "g": change([0.0, 0.8], [0.8, 0.8], people)}
    estimate = dependence_estimate(change([0.0, 0.8], [0.8, 0.8], people), forms)
    assert estimate.value == 0
    assert estimate.draws is not None
    finite = estimate.draws[np.isfinite(estimate.draws)]
    assert len(finite) < len(estimate.draws), "a draw of the untouched person alone has no drop to compare with"
    assert not finite.any()


def test_a_ratio_of_equal_models_has_no_width() -> None:
    values = [0.1, 0.9, 0.4, 0.6, 0.3, 0.2]
    estimate = ratio_estimate(change(values, values), name="r")
    assert (estimate.value, estimate.n, estimate.n_total) == (1, 6, 6)
    assert estimate.draws is not None
    assert np.allclose(estimate.draws, 1), "both models' rows are resampled alike"


def test_rows_without_a_value_leave_both_models() -> None:
    nan = float("nan")
    estimate = ratio_estimate(change([0.2, nan, 0.4], [0.8, 0.5, nan]), name="r", allow_missing=True)
    assert estimate.value == pytest.approx(0.25)
    assert (estimate.n, estimate.n_total) == (1, 3)
    with pytest.raises(MetricError, match="only 1 of 3"):
        ratio_estimate(change([0.2, nan, 0.4], [0.8, 0.5, nan]), name="r")


def test_what_is_left_above_guessing() -> None:
    assert above_chance(np.array(0.40), np.array(0.65), chance=0.25) == pytest.approx(0.375)
    found = above_chance(np.array([0.65, 0.25, 0.15, 0.4]), np.array([0.65, 0.65, 0.65, 0.25]), chance=0.25)
    assert found == pytest.approx([1, 0, -0.25, np.nan], nan_ok=True)
