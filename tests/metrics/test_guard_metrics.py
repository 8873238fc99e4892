"""A guard's threshold and rates: the conformal law, exactly, and what is refused."""

from __future__ import annotations

import math
from fractions import Fraction
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from expunge.errors import MetricError, UsageError
from expunge.metrics.guard import (
    binomial_interval,
    calibration_split,
    conformal_rank,
    conformal_threshold,
    needed_prompts,
    refusal_rate,
)

LAW = settings(derandomize=True, deadline=None, max_examples=60)
RATES = st.sampled_from([0.25, 0.3, 0.5, 0.9])


def distinct(least: int = 41) -> st.SearchStrategy[list[float]]:
    return st.lists(
        st.floats(-1e6, 1e6, allow_nan=False, allow_subnormal=False), min_size=least, max_size=least + 20, unique=True
    )


@LAW
@given(distinct(), RATES)
def test_a_new_prompt_is_refused_at_most_at_the_rate(energies: list[float], rate: float) -> None:
    """Of n + 1 exchangeable prompts each is equally likely to be the new one, so counting all of them is the law."""
    values = np.array(energies)
    refused = sum(values[i] > conformal_threshold(np.delete(values, i), rate=rate) for i in range(len(values)))
    share = Fraction(int(refused), len(values))
    assert share <= Fraction(repr(rate))
    assert refused == math.floor(len(values) * Fraction(repr(rate))), "and not much less often than that"


@LAW
@given(st.lists(st.sampled_from([-3.0, -2.5, 0.0, 1.0]), min_size=41, max_size=60), RATES)
def test_ties_only_make_it_more_cautious(energies: list[float], rate: float) -> None:
    values = np.array(energies)
    refused = sum(values[i] > conformal_threshold(np.delete(values, i), rate=rate) for i in range(len(values)))
    assert Fraction(int(refused), len(values)) <= Fraction(repr(rate))


@LAW
@given(distinct(), RATES, st.randoms(use_true_random=False))
def test_the_threshold_is_an_energy_and_ignores_their_order(energies: list[float], rate: float, random: Random) -> None:
    found = conformal_threshold(np.array(energies), rate=rate)
    assert found in energies
    random.shuffle(energies)
    assert conformal_threshold(np.array(energies), rate=rate) == found


@LAW
@given(distinct(), st.lists(st.floats(0.25, 0.99), min_size=2, max_size=2))
def test_a_larger_rate_refuses_no_less(energies: list[float], rates: list[float]) -> None:
    values = np.array(energies)
    strict, lenient = (conformal_threshold(values, rate=rate) for rate in sorted(rates))
    assert lenient <= strict


@LAW
@given(distinct(1), st.floats(-1e6, 1e6))
def test_a_rate_counts_what_lies_above(energies: list[float], threshold: float) -> None:
    score = refusal_rate(np.array(energies), threshold, direction="higher", ideal=1.0)
    assert score.value == sum(value > threshold for value in energies) / len(energies)
    assert score.low is not None
    assert score.high is not None
    assert 0 <= score.low <= score.value <= score.high <= 1
    assert (score.n, score.n_total, score.ideal, score.direction) == (len(energies), len(energies), 1.0, "higher")


@LAW
@given(st.integers(1, 200), st.data())
def test_the_interval_leaves_a_fortieth_on_each_side(n: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, n))
    low, high = binomial_interval(count, n)
    assert low is not None
    assert high is not None
    assert low == 0 if count == 0 else binom.sf(count - 1, n, low) == pytest.approx(0.025, rel=1e-6)
    assert high == 1 if count == n else binom.cdf(count, n, high) == pytest.approx(0.025, rel=1e-6)


@LAW
@given(st.lists(st.text(max_size=8), max_size=60), st.integers(0, 9), st.randoms(use_true_random=False))
def test_the_halves_depend_on_the_set_of_prompts_alone(prompts: list[str], seed: int, random: Random) -> None:
    halves = calibration_split(prompts, seed=seed)
    assert sorted(halves.calibration + halves.test) == sorted(set(prompts))
    assert len(halves.test) - len(halves.calibration) in (0, 1)
    again = [*prompts, *prompts[:3]]
    random.shuffle(again)
    assert calibration_split(again, seed=seed) == halves


def test_seeds_split_differently() -> None:
    prompts = [f"question {i}" for i in range(100)]
    assert calibration_split(prompts, seed=0) != calibration_split(prompts, seed=1)


def test_ranks_are_exact() -> None:
    assert needed_prompts(0.02) == 500
    assert needed_prompts(0.05) == 200
    assert needed_prompts(0.03) == 334
    assert conformal_rank(99, 0.02) == 98
    assert conformal_rank(500, 0.02) == 491
    assert conformal_rank(9, 0.1) == 9
    energies = np.arange(500.0)
    assert conformal_threshold(energies, rate=0.02) == 490.0
    assert int((energies > 490).sum()) == 9


def test_too_few_prompts_say_how_many() -> None:
    with pytest.raises(MetricError, match="2 % needs 500 calibration prompts, there are 499") as caught:
        conformal_threshold(np.zeros(499), rate=0.02)
    assert "2.1 %" in str(caught.value.hint)
    with pytest.raises(MetricError, match="needs at least one prompt"):
        refusal_rate(np.array([]), 0.0, direction="lower")


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 2.0, math.nan])
def test_rates_outside_the_interval(rate: float) -> None:
    with pytest.raises(UsageError, match="false-refusal rate is"):
        needed_prompts(rate)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_energies_that_are_not_numbers(bad: float) -> None:
    energies = np.append(np.zeros(499), bad)
    with pytest.raises(MetricError, match="1 of 500 energies"):
        conformal_threshold(energies, rate=0.02)
    with pytest.raises(MetricError, match="1 of 500 energies"):
        refusal_rate(energies, 0.0, direction="lower")
