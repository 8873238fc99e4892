"""Fluency of outputs: n-gram entropy, repetition, lexical richness, perplexity."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import MetricError
from expunge.metrics.bootstrap import draw_weights
from expunge.metrics.fluency import (
    lexical_richness,
    ngram_entropy,
    perplexity,
    perplexity_estimate,
    repetition,
    words,
)
from expunge.metrics.ragged import Ragged

laws = settings(derandomize=True, deadline=None, max_examples=60)
tokens = st.lists(st.integers(0, 4), max_size=12)
AROUND = [[1, 2, 3, 4, 5, 6], [], [7], [7, 7, 7, 7, 7]]


def test_words_of_any_script() -> None:
    assert words("Ana's café, 3.5!") == ["Ana", "'", "s", "café", ",", "3", ".", "5", "!"]
    assert words(" \n") == []


def test_entropy_by_hand() -> None:
    # Bigrams ab, ba, ab; trigrams aba, bab.
    bigram, trigram = math.log2(3) - 2 / 3, 1.0
    assert bigram == pytest.approx(0.918296, abs=5e-7)
    found = ngram_entropy([words("a b a b")])
    assert found.tolist() == [pytest.approx((2 / 3 * bigram + 4 / 3 * trigram) / 2)]
    assert found[0] == pytest.approx(0.972765, abs=5e-7)


def test_loops_and_short_texts_have_no_entropy() -> None:
    found = ngram_entropy([words("no no no no no"), [], ["one"], ["one", "two"]])
    assert found.tolist() == [0, 0, 0, 0]
    assert not np.signbit(found).any()


@laws
@given(st.lists(tokens, min_size=1, max_size=4))
def test_entropy_is_bounded_and_of_the_pattern_alone(rows: list[list[int]]) -> None:
    found = ngram_entropy(rows)
    most = [np.log2(max(len(row), 1)) for row in rows]
    assert (found >= 0).all()
    assert (found <= np.array(most) + 1e-12).all()
    assert ngram_entropy([[f"word {token}" for token in row] for row in rows]) == pytest.approx(found)
    assert ngram_entropy([row[::-1] for row in rows]) == pytest.approx(found)


def test_distinct_tokens_have_the_most_entropy() -> None:
    assert ngram_entropy([list(range(10))])[0] == pytest.approx((2 / 3 * np.log2(9) + 4 / 3 * np.log2(8)) / 2)


def test_repetition_by_hand() -> None:
    row = ["a", "b", "a", "b", "a"]
    assert repetition([row], n=1).tolist() == [pytest.approx(1 - 2 / 5)]
    assert repetition([row], n=2).tolist() == [pytest.approx(1 - 2 / 4)]
    assert repetition([row])[0] == 0, "abab and baba"
    assert repetition(AROUND, n=2) == pytest.approx([0, np.nan, np.nan, 0.75], nan_ok=True)
    with pytest.raises(MetricError, match="at least 1"):
        repetition([row], n=0)


@laws
@given(st.lists(tokens, min_size=1, max_size=4), st.integers(1, 4))
def test_repetition_is_a_share(rows: list[list[int]], n: int) -> None:
    found = repetition(rows, n=n)
    long = np.array([len(row) >= n for row in rows])
    assert np.isnan(found[~long]).all()
    assert ((found[long] >= 0) & (found[long] < 1)).all()


def test_richness_by_hand() -> None:
    # Five tokens, three of them distinct, two of these there once.
    found = lexical_richness([["a", "b", "a", "c", "a"]])
    assert found.type_token.tolist() == [pytest.approx(0.6)]
    assert found.root_type_token.tolist() == [pytest.approx(3 / math.sqrt(5))]
    assert found.brunet.tolist() == [pytest.approx(5 ** (3**-0.172))]
    assert found.honore.tolist() == [pytest.approx(100 * math.log(5) / (1 - 2 / 3))]


def test_richness_is_missing_where_it_is_undefined() -> None:
    found = lexical_richness([[], ["one"], ["one", "two"], ["one", "one"]])
    assert all(np.isnan(values[0]) for values in found)
    assert found.type_token[1:].tolist() == [1, 1, 0.5]
    # Where every token stands there once Honoré divides by 0.
    assert np.isnan(found.honore[1:3]).all()
    assert found.honore[3] == pytest.approx(100 * math.log(2))


def test_perplexity_is_the_inverse_of_probability() -> None:
    logp = Ragged.from_rows([list(np.log([0.5, 0.25])), [0.0], []])
    assert perplexity(logp) == pytest.approx([math.sqrt(8), 1, np.nan], nan_ok=True)


def test_tokens_weigh_alike_in_the_perplexity_of_all_rows() -> None:
    rows = [list(np.log([0.5] * 3)), list(np.log([0.125]))] * 60
    logp = Ragged.from_rows(rows)
    weights = draw_weights([None] * len(rows), label="outputs")
    estimate = perplexity_estimate(logp, weights, name="forget.perplexity")
    assert estimate.value == pytest.approx(2 ** (6 / 4))
    assert (estimate.n, estimate.n_total) == (120, 120)
    score = estimate.score("lower")
    assert score.low is not None
    assert score.high is not None
    assert score.low < score.value < score.high
    assert estimate.draws is not None
    assert weights is not None
    first = weights[0]
    nll, counts = -logp.sums(), logp.lengths
    assert estimate.draws[0] == pytest.approx(np.exp((first * nll).sum() / (first * counts).sum()))
    assert perplexity_estimate(logp, None, name="x").score("lower").low is None


def test_rows_without_tokens_are_counted_and_too_many_are_refused() -> None:
    logp = Ragged.from_rows([[-1.0]] * 199 + [[]])
    found = perplexity_estimate(logp, None, name="x")
    assert found.value == pytest.approx(math.e)
    assert (found.n, found.n_total) == (199, 200)
    with pytest.raises(MetricError, match="1 of 2 rows"):
        perplexity_estimate(Ragged.from_rows([[-1.0], []]), None, name="x")
    allowed = perplexity_estimate(Ragged.from_rows([[-1.0], []]), None, name="x", allow_missing=True)
    assert allowed.n == 1
