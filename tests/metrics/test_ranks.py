"""PISTOL's ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import MetricError
from expunge.metrics.memorization import exact_memorization
from expunge.metrics.ragged import Ragged
from expunge.metrics.ranks import reciprocal_rank, top_hit_rate

laws = settings(derandomize=True, deadline=None, max_examples=60)


def rows(*ranks: list[int]) -> Ragged:
    return Ragged.from_rows([[float(rank) for rank in row] for row in ranks])


def test_ranks_by_hand() -> None:
    assert reciprocal_rank(rows([1, 2, 4])).tolist() == [pytest.approx(0.583333, abs=5e-7)]
    assert top_hit_rate(rows([1, 101])).tolist() == [0.5]
    assert top_hit_rate(rows([1, 2, 4]), within=2).tolist() == [pytest.approx(2 / 3)]


def test_whole_numbers_and_empty_rows() -> None:
    ranks = Ragged.from_lengths(np.array([2, 1], dtype=np.int32), np.array([2, 0]))
    assert reciprocal_rank(ranks) == pytest.approx([0.75, np.nan], nan_ok=True)
    assert top_hit_rate(ranks) == pytest.approx([1, np.nan], nan_ok=True)


@laws
@given(st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=6), min_size=1, max_size=5), st.integers(1, 300))
def test_laws_of_ranks(ranks: list[list[int]], within: int) -> None:
    found = rows(*ranks)
    hits = found.with_values(found.values == 1)
    assert top_hit_rate(found, within=1) == pytest.approx(exact_memorization(hits))
    assert (top_hit_rate(found, within=within) <= top_hit_rate(found, within=within + 1)).all()
    assert (reciprocal_rank(found) >= top_hit_rate(found, within=1) - 1e-12).all()
    assert (reciprocal_rank(found) <= 1).all()


@pytest.mark.parametrize("bad", [[0, 1], [1, -3]])
def test_a_rank_below_1_is_refused(bad: list[int]) -> None:
    for score in (reciprocal_rank, top_hit_rate):
        with pytest.raises(MetricError, match=r"1 of 3 ranks are below 1 \(rows 1\)"):
            score(rows([1], bad))
    with pytest.raises(MetricError, match="1 or more tokens"):
        top_hit_rate(rows([1]), within=0)
