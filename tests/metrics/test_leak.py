"""Leak@k: published values by hand, the estimator against every subset, and the bound without sampling."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import MetricError
from expunge.metrics.leak import exact_leak_at_k, leak_at_k, leak_at_k_of_counts, tempered_logp
from expunge.metrics.ragged import Ragged

laws = settings(derandomize=True, deadline=None, max_examples=60)
samples = st.lists(st.floats(0, 1), min_size=1, max_size=7)


def rows(*scores: list[float]) -> Ragged:
    return Ragged.from_rows(list(scores))


@pytest.mark.parametrize(("k", "expected"), [(1, 0.425), (2, 0.65), (4, 0.9)])
def test_scores_by_hand(k: int, expected: float) -> None:
    assert leak_at_k(rows([0.5, 0.1, 0.9, 0.2]), k=k).tolist() == [pytest.approx(expected)]


def test_counts_by_hand() -> None:
    assert leak_at_k_of_counts(np.array([1]), np.array([4]), k=2).tolist() == [pytest.approx(0.5)]
    for k in (1, 64, 200):
        assert leak_at_k_of_counts(np.array([0, 200]), np.array([200, 200]), k=k).tolist() == [0, 1]
    # Fewer silent samples than draws: one of the draws must leak.
    assert leak_at_k_of_counts(np.array([3]), np.array([4]), k=2).tolist() == [1]


@laws
@given(st.lists(samples, min_size=1, max_size=4), st.integers(1, 7))
def test_it_is_the_mean_largest_over_all_subsets(scores: list[list[float]], k: int) -> None:
    k = min(k, *map(len, scores))
    expected = [np.mean([max(chosen) for chosen in combinations(row, k)]) for row in scores]
    assert leak_at_k(rows(*scores), k=k) == pytest.approx(expected)


@laws
@given(st.integers(1, 40), st.integers(0, 40), st.integers(1, 40))
def test_both_forms_agree_on_zeros_and_ones(n: int, c: int, k: int) -> None:
    c, k = min(c, n), min(k, n)
    scores = [1.0] * c + [0.0] * (n - c)
    expected = 1 - comb(n - c, k) / comb(n, k)
    assert leak_at_k_of_counts(np.array([c]), np.array([n]), k=k)[0] == pytest.approx(expected, abs=1e-12)
    assert leak_at_k(rows(scores), k=k)[0] == pytest.approx(expected, abs=1e-12)


@laws
@given(samples)
def test_more_draws_never_leak_less(scores: list[float]) -> None:
    found = [leak_at_k(rows(scores), k=k)[0] for k in range(1, len(scores) + 1)]
    assert found[0] == pytest.approx(np.mean(scores))
    assert found[-1] == pytest.approx(max(scores))
    assert (np.diff(found) >= -1e-12).all()


def test_the_estimator_is_unbiased() -> None:
    # Of a value with three outcomes, every possible sample of n = 3, weighted by how likely it is.
    outcomes, chances = np.array([0.0, 0.4, 1.0]), np.array([0.5, 0.3, 0.2])
    drawn = np.array(np.meshgrid(*[np.arange(3)] * 3)).reshape(3, -1).T
    estimates = leak_at_k(Ragged.from_lengths(outcomes[drawn].ravel(), np.full(len(drawn), 3)), k=2)
    expected = sum(
        p * q * max(x, y)
        for x, p in zip(outcomes, chances, strict=True)
        for y, q in zip(outcomes, chances, strict=True)
    )
    assert (estimates * chances[drawn].prod(-1)).sum() == pytest.approx(expected)


def test_many_samples_do_not_overflow() -> None:
    scores = np.random.default_rng(0).random((3, 5000))
    found = leak_at_k(Ragged.from_lengths(scores.ravel(), np.full(3, 5000)), k=128)
    assert np.isfinite(found).all()
    assert (found > 0.98).all()
    assert leak_at_k(Ragged.from_lengths(np.ones(5000), np.array([5000])), k=2500) == pytest.approx(1.0)


def test_a_sample_without_a_score_leaves_its_row_without_one() -> None:
    found = leak_at_k(rows([0.5, np.nan, 0.1], [0.5, 0.5, 0.5]), k=2)
    assert np.isnan(found[0])
    assert found[1] == pytest.approx(0.5)


def test_too_few_samples_are_named() -> None:
    with pytest.raises(MetricError, match=r"leak@3 needs 3 samples of each row; 2 of 3 have fewer \(rows 0, 2\)"):
        leak_at_k(rows([1], [0, 0, 1], []), k=3)
    with pytest.raises(MetricError, match="k >= 1"):
        leak_at_k(rows([1.0]), k=0)
    with pytest.raises(MetricError, match="1 of 2 have fewer"):
        leak_at_k_of_counts(np.array([0, 0]), np.array([8, 4]), k=5)


@pytest.mark.parametrize("leaks", [-1, 5])
def test_impossible_counts_are_refused(leaks: int) -> None:
    with pytest.raises(MetricError, match=r"rows 1"):
        leak_at_k_of_counts(np.array([1, leaks]), np.array([4, 4]), k=1)


def test_the_bound_by_hand() -> None:
    # "a b End" of the toy bigram model: 1/2 of 1/2 of 3/4.
    logp = rows(list(np.log([0.5, 0.5, 0.75])))
    assert exact_leak_at_k(logp, k=1)[0] == pytest.approx(0.1875)
    assert exact_leak_at_k(logp, k=4)[0] == pytest.approx(0.564194, abs=5e-7)


def test_the_bound_at_its_ends() -> None:
    found = exact_leak_at_k(rows([0.0, 0.0], [-np.inf], [-1e-12], [-60.0], []), k=3)
    assert found[:2].tolist() == [1, 0]
    assert found[2] == pytest.approx(1)
    assert found[3] == pytest.approx(3 * np.exp(-60), rel=1e-9), "tiny chances keep their digits"
    assert np.isnan(found[4])
    with pytest.raises(MetricError):
        exact_leak_at_k(rows([0.0]), k=0)


@laws
@given(st.lists(st.floats(-8, 0), min_size=1, max_size=5), st.integers(1, 200))
def test_the_bound_is_a_chance_that_grows(logp: list[float], k: int) -> None:
    one, more = (exact_leak_at_k(rows(logp), k=draws)[0] for draws in (k, k + 1))
    assert 0 <= one <= more + 1e-15 <= 1 + 1e-15
    p = float(np.exp(np.sum(logp)))
    assert one == pytest.approx(1 - (1 - p) ** k, rel=1e-6, abs=1e-9)


def test_the_bound_is_below_what_sampling_finds() -> None:
    # Whoever counts paraphrases too finds at least the exact answers.
    generator = np.random.default_rng(0)
    exact = generator.random((200, 64)) < 0.02
    paraphrased = generator.random((200, 64)) < 0.01
    sampled = leak_at_k_of_counts((exact | paraphrased).sum(-1), np.full(200, 64), k=8).mean()
    assert exact_leak_at_k(rows([np.log(0.02)]), k=8)[0] < sampled


@laws
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6), st.floats(0.2, 3))
def test_another_temperature(logits: list[float], temperature: float) -> None:
    z = np.array(logits)
    lse, tempered = np.logaddexp.reduce(z), np.logaddexp.reduce(z / temperature)
    found = tempered_logp(rows([z[0] - lse]), rows([lse]), rows([tempered]), temperature=temperature)
    weights = np.exp(z / temperature)
    assert np.exp(found.values[0]) == pytest.approx(weights[0] / weights.sum())
    same = tempered_logp(rows([z[0] - lse]), rows([lse]), rows([lse]), temperature=1)
    assert same.values[0] == pytest.approx(z[0] - lse)


@pytest.mark.parametrize("temperature", [0, -1, float("nan")])
def test_greedy_decoding_has_no_bound(temperature: float) -> None:
    with pytest.raises(MetricError, match="above 0"):
        tempered_logp(rows([-1.0]), rows([1.0]), rows([1.0]), temperature=temperature)
