"""KLOM: margins read off log-probabilities, and two samples of them compared row by row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.metrics.klom import BINS, CLIP, FLOOR, klom, sequence_margins, token_margins
from expunge.metrics.ragged import Ragged

TOP = -np.log(FLOOR)


def test_the_margin_of_three_logits() -> None:
    logits = np.array([2.0, 0.0, 0.0])
    logp = logits - np.log(np.exp(logits).sum())
    assert token_margins(logp)[0] == pytest.approx(1.306853, abs=1e-6)
    assert token_margins(logp)[1] == pytest.approx(0 - np.log(np.exp(2) + 1))


@settings(derandomize=True, max_examples=60)
@given(st.lists(st.floats(-30, 30), min_size=2, max_size=12))
def test_margins_of_log_probabilities_are_those_of_logits(values: list[float]) -> None:
    logits = np.array(values)
    logp = logits - np.logaddexp.reduce(logits)
    others = [np.logaddexp.reduce(np.delete(logits, place)) for place in range(len(logits))]
    # A token that is nearly certain has no digits left in its log-probability beside the largest logit.
    near = logp < -1e-9
    assert token_margins(logp)[near] == pytest.approx((logits - others)[near], rel=1e-4, abs=1e-4)


def test_certain_and_impossible_tokens_are_clipped_before_the_mean() -> None:
    logp = Ragged.from_rows([[0.0, -np.inf], [0.0], []])
    margins = sequence_margins(logp)
    assert margins[:2].tolist() == [0.0, CLIP]
    assert np.isnan(margins[2])


def test_tiny_gaps_to_certainty_keep_their_digits() -> None:
    assert token_margins(np.array([-1e-12]))[0] == pytest.approx(np.log(1e12), rel=1e-9)


def sample(seed: int, count: int, rows: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, rows))


def test_equal_samples_score_zero() -> None:
    assert klom(sample(0, 40), sample(0, 40)).tolist() == [0, 0, 0]
    assert klom(np.full((3, 1), 2.0), np.full((5, 1), 2.0)).tolist() == [0]


def test_a_point_mass_away_from_the_oracles_scores_minus_the_log_of_the_floor() -> None:
    assert klom(np.zeros((7, 1)), np.full((4, 1), 3.0))[0] == pytest.approx(11.512925, abs=1e-6)


def test_a_spread_sample_away_from_the_oracles_scores_less_by_its_entropy() -> None:
    # Two equally filled bins: log 1e5 - log 2.
    assert klom(np.array([[0.0], [50.0]]), np.full((2, 1), 100.0))[0] == pytest.approx(10.819778, abs=1e-6)
    apart = klom(sample(0, 4000, 1), sample(0, 4000, 1) + 50)[0]
    place = np.floor((sample(0, 4000, 1) - sample(0, 4000, 1).min()) / ((np.ptp(sample(0, 4000, 1)) + 50) / BINS))
    _, counts = np.unique(place, return_counts=True)
    shares = counts / counts.sum()
    assert apart == pytest.approx(TOP + (shares * np.log(shares)).sum(), abs=1e-9)


def test_the_largest_sample_is_not_dropped() -> None:
    # Were it dropped, the unlearned histogram would be empty and the score 0.
    assert klom(np.array([[1.0]]), np.array([[0.0]]))[0] == pytest.approx(TOP)
    assert klom(np.array([[0.0], [1.0]]), np.array([[0.0], [1.0]]))[0] == pytest.approx(0, abs=1e-12)


def test_the_clip_is_symmetric() -> None:
    for sign in (-1.0, 1.0):
        assert klom(np.full((2, 1), sign * 1e9), np.full((2, 1), sign * CLIP))[0] == 0
    assert klom(np.full((2, 1), np.inf), np.full((2, 1), -np.inf))[0] == pytest.approx(TOP)


def test_rows_do_not_touch_each_other() -> None:
    ours, theirs = sample(1, 10, 4), sample(2, 12, 4) * 3
    together = klom(ours, theirs)
    alone = [klom(ours[:, [row]], theirs[:, [row]])[0] for row in range(4)]
    assert together.tolist() == pytest.approx(alone, rel=1e-12)


def test_a_row_without_a_margin_stays_without_a_score() -> None:
    ours = sample(1, 4, 2)
    ours[0, 1] = np.nan
    found = klom(ours, sample(2, 4, 2))
    assert np.isfinite(found[0])
    assert np.isnan(found[1])


@settings(derandomize=True, max_examples=60)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10_000), st.floats(-20, 20), st.floats(0.1, 5))
def test_bounds_and_invariances(ours: int, theirs: int, seed: int, shift: float, scale: float) -> None:
    one, two = sample(seed, ours, 2), sample(seed + 1, theirs, 2)
    found = klom(one, two)
    assert (found >= -BINS * FLOOR).all()
    assert (found <= TOP + 1e-9).all()
    order = np.random.default_rng(seed).permutation(ours)
    assert klom(one[order], two).tolist() == pytest.approx(found.tolist(), abs=1e-12)
    # Bins follow the joint range, so a shift or a stretch of both samples changes nothing but rounding at bin edges.
    moved = klom(one * scale + shift, two * scale + shift)
    assert np.isfinite(moved).all()
