"""Laws that hold for any data."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from expunge.errors import MetricError
from expunge.metrics.auc import auc, auc_draws, fpr_at_95, fpr_at_95_draws
from expunge.metrics.bootstrap import draw_weights, interval
from expunge.metrics.estimate import (
    Column,
    Estimate,
    auc_estimate,
    fpr95_estimate,
    harmonic_estimate,
    mean_estimate,
)
from expunge.metrics.forget_quality import ks_test
from expunge.metrics.membership import min_k_score
from expunge.metrics.memorization import exact_memorization, extraction_strength
from expunge.metrics.ragged import Ragged

laws = settings(derandomize=True, deadline=None, max_examples=60)

samples = st.lists(st.integers(-6, 6), min_size=1, max_size=9).map(lambda values: np.array(values, dtype=float))
rows = st.lists(st.lists(st.floats(-9, 0), max_size=6), min_size=1, max_size=6)


def column(values: np.ndarray, *, label: str = "x", groups: list[str | None] | None = None) -> Column:
    names: list[str | None] = groups if groups is not None else [None] * len(values)
    return Column(values, ~np.isnan(values), draw_weights(names, label=label))


def enumerated_pvalue(n: int, m: int, statistic: float) -> float:
    """Share of all ways to split n + m distinct values into samples of n and m whose distance is at least as large."""
    distances = []
    for chosen in combinations(range(n + m), n):
        one = np.isin(np.arange(n + m), chosen)
        distances.append(np.abs(np.cumsum(one) / n - np.cumsum(~one) / m).max())
    return float(np.mean(np.array(distances) >= statistic - 1e-9))


@pytest.mark.parametrize(("n", "m"), [(1, 1), (4, 4), (5, 5), (1, 4), (3, 5), (5, 3), (6, 4)])
def test_ks_counts_every_arrangement(n: int, m: int) -> None:
    values = np.random.default_rng(0).permuted(np.tile(np.arange(n + m, dtype=float), (10, 1)), axis=1)
    for row in values:
        found = ks_test(row[:n], row[n:])
        assert found.statistic == pytest.approx(ks_2samp(row[:n], row[n:]).statistic)
        assert found.pvalue == pytest.approx(enumerated_pvalue(n, m, found.statistic))


@laws
@given(samples, samples)
def test_ks_is_invariant(first: np.ndarray, second: np.ndarray) -> None:
    found = ks_test(first, second)
    assert ks_test(second, first) == found
    assert ks_test(np.exp(first), np.exp(second)) == found
    assert ks_test(-first, -second) == found
    assert ks_test(np.flip(first), np.flip(second)) == found


def test_unequal_sizes_count_the_same_paths_as_equal_ones() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=60), generator.normal(0.8, size=40)
    found = ks_test(first, second)
    assert found.pvalue == pytest.approx(ks_2samp(first, second, method="exact").pvalue, rel=1e-9)
    assert ks_test(first[:40], second).pvalue == pytest.approx(ks_2samp(first[:40], second).pvalue, rel=1e-9)


@laws
@given(samples, samples)
def test_auc_is_symmetric_and_a_pair_count(first: np.ndarray, second: np.ndarray) -> None:
    wins = (first[:, None] > second).mean() + (first[:, None] == second).mean() / 2
    assert auc(first, second) == pytest.approx(wins)
    assert auc(first, second) + auc(second, first) == pytest.approx(1)
    assert auc(np.exp(first), np.exp(second)) == pytest.approx(wins)


@laws
@given(samples, samples)
def test_fpr95_is_its_definition(accepted: np.ndarray, rejected: np.ndarray) -> None:
    thresholds = [value for value in accepted if (accepted >= value).mean() >= 0.95]
    assert fpr_at_95(accepted, rejected) == pytest.approx((rejected >= max(thresholds)).mean())


@laws
@given(samples, samples, st.integers(0, 1000))
def test_weighted_draws_equal_repeated_rows(first: np.ndarray, second: np.ndarray, seed: int) -> None:
    generator = np.random.default_rng(seed)
    ones, twos = generator.integers(0, 3, len(first)), generator.integers(0, 3, len(second))
    ones[0], twos[0] = 1, 1
    weights = ones[None].astype(float), twos[None].astype(float)
    repeated = np.repeat(first, ones), np.repeat(second, twos)
    assert auc_draws(first, second, *weights)[0] == pytest.approx(auc(*repeated))
    assert fpr_at_95_draws(first, second, *weights)[0] == pytest.approx(fpr_at_95(*repeated))


@laws
@given(rows)
def test_min_k_sorts_each_row(values: list[list[float]]) -> None:
    found = min_k_score(Ragged.from_rows(values), k=0.5)
    expected = [np.mean(sorted(row)[: max(1, int(len(row) * 0.5))]) if row else math.nan for row in values]
    assert found == pytest.approx(expected, nan_ok=True)


@laws
@given(st.lists(st.lists(st.booleans(), max_size=7), min_size=1, max_size=6))
def test_extraction_strength_is_the_longest_suffix_of_hits(hits: list[list[bool]]) -> None:
    ragged = Ragged.from_rows([[float(hit) for hit in row] for row in hits])
    expected, published = [], []
    for row in hits:
        starts = [k for k in range(len(row) + 1) if all(row[k:])]
        expected.append(1 - min(starts) / len(row) if row else math.nan)
        published.append(1 - min(min(starts), len(row) - 1) / len(row) if row else math.nan)
    found = extraction_strength(ragged)
    assert found == pytest.approx(expected, nan_ok=True)
    assert extraction_strength(ragged, floor="one_over_n") == pytest.approx(published, nan_ok=True)
    full = ragged.lengths > 0
    assert (found[full] <= exact_memorization(ragged)[full] + 1e-12).all()


@laws
@given(rows, st.integers(0, 1000))
def test_ragged_rows_travel_together(values: list[list[float]], seed: int) -> None:
    ragged = Ragged.from_rows(values)
    order = np.random.default_rng(seed).permutation(len(values))
    taken = ragged.take(order)
    assert taken.means() == pytest.approx(ragged.means()[order], nan_ok=True)
    assert taken.first() == pytest.approx(ragged.first()[order], nan_ok=True)
    keep = ragged.values < -1
    kept = ragged.select(keep)
    assert kept.sums() == pytest.approx([sum(v for v in row if v < -1) for row in values])
    assert kept.lengths.tolist() == [sum(v < -1 for v in row) for row in values]


def test_interval_holds_the_value_and_is_deterministic() -> None:
    generator = np.random.default_rng(1)
    values = generator.normal(3, 1, 200)
    estimate = mean_estimate(column(values), name="x")
    score = estimate.score("higher")
    assert score.low is not None
    assert score.high is not None
    assert score.low < score.value < score.high
    standard_error = values.std(ddof=1) / np.sqrt(len(values))
    assert score.high - score.low == pytest.approx(2 * 1.96 * standard_error, rel=0.1)
    assert mean_estimate(column(values), name="x").score("higher") == score
    assert interval(estimate.draws) == (score.low, score.high)


def test_groups_widen_the_interval() -> None:
    generator = np.random.default_rng(2)
    authors = generator.normal(size=20)
    values = np.repeat(authors, 20) + generator.normal(0, 0.1, 400)
    groups: list[str | None] = [str(row // 20) for row in range(400)]
    wide, narrow = (mean_estimate(column(values, groups=g), name="x").score("higher") for g in (groups, None))
    assert (wide.high or 0) - (wide.low or 0) > 3 * ((narrow.high or 0) - (narrow.low or 0))


def test_two_splits_are_drawn_independently() -> None:
    one, two = (draw_weights([None] * 30, label=label) for label in ("forget", "retain"))
    assert one is not None
    assert two is not None
    assert not np.array_equal(one, two)
    assert (one.sum(1) == 30).all()
    again = draw_weights([None] * 30, label="forget")
    assert again is not None
    assert np.array_equal(one, again)


def test_one_group_is_resampled_by_its_rows_and_one_row_has_no_interval() -> None:
    assert np.array_equal(draw_weights(["ada"] * 5, label="x"), draw_weights([None] * 5, label="x"))
    score = mean_estimate(column(np.ones(1), groups=["ada"]), name="x").score("higher")
    assert (score.low, score.high) == (None, None)


def test_auc_interval_resamples_both_sides() -> None:
    generator = np.random.default_rng(3)
    one, two = column(generator.normal(1, 1, 80), label="a"), column(generator.normal(0, 1, 90), label="b")
    score = auc_estimate(one, two, name="x").score("match", ideal=0.5)
    assert (score.n, score.n_total, score.ideal) == (170, 170, 0.5)
    assert score.low is not None
    assert score.high is not None
    assert score.low < score.value < score.high
    rate = fpr95_estimate(one, two, name="x").score("lower")
    assert rate.low is not None
    assert rate.high is not None
    assert rate.low <= rate.value <= rate.high


def test_harmonic_interval_resamples_each_part() -> None:
    generator = np.random.default_rng(4)
    parts = {
        name: [mean_estimate(column(generator.uniform(0.2, 0.9, 50), label=name), name=name)] for name in ("a", "b")
    }
    found = harmonic_estimate(parts)
    assert (found.n, found.n_total) == (100, 100)
    assert found.draws is not None
    score = found.score("higher")
    assert score.low is not None
    assert score.high is not None
    assert score.low < score.value < score.high
    without = harmonic_estimate({"a": parts["a"], "b": [Estimate(0.5, None, 1, 1)]})
    assert without.draws is None


def test_missing_rows_are_counted_and_refused() -> None:
    values = np.ones(200)
    values[7] = math.nan
    score = mean_estimate(column(values), name="x").score("higher")
    assert (score.value, score.n, score.n_total) == (1, 199, 200)
    values[[8, 9]] = math.nan
    with pytest.raises(MetricError, match=r"only 197 of 200 rows can be measured \(rows 7, 8, 9 cannot\)"):
        mean_estimate(column(values), name="x")
    assert mean_estimate(column(values), name="x", allow_missing=True).n == 197


@pytest.mark.parametrize("values", [[], [math.nan, math.nan]])
def test_no_data_is_refused(values: list[float]) -> None:
    with pytest.raises(MetricError):
        mean_estimate(column(np.array(values)), name="x", allow_missing=True)


def test_a_value_that_is_not_a_number_is_refused() -> None:
    bad = Column(np.array([1.0, math.nan, math.inf]), np.ones(3, dtype=bool), None, [4, 5, 6])
    with pytest.raises(MetricError, match=r"rows 5, 6"):
        mean_estimate(bad, name="x", allow_missing=True)
