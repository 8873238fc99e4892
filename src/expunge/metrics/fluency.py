"""Whether generated text is still language: entropy of its n-grams, repetition, lexical richness, perplexity.

Every score here depends on the length of the text, so outputs must be generated with one limit to be compared. None
tells a fluent wrong answer from a right one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from expunge.errors import MetricError
from expunge.metrics.bootstrap import mean_draws
from expunge.metrics.estimate import Column, Estimate, valid_column
from expunge.metrics.probability import mean_loss
from expunge.metrics.ragged import Array, Ragged

Tokens = Sequence[Hashable]
"""Words of a text (`words`), or token ids."""

ENTROPY_WEIGHTS = {2: 2 / 3, 3: 4 / 3}
"""Length of the n-grams -> weight of their entropy."""

_WORD = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> list[str]:
    """Runs of letters and digits in any script, and every other visible character by itself; case is kept.

    Published values use the words of nltk, which also splits contractions as "do" + "n't" and needs a downloaded model
    for the ends of sentences; the functions below take those words as well as these.
    """
    return _WORD.findall(text)


def ngram_entropy(rows: Sequence[Tokens]) -> Array:
    """`(2/3 H_2 + 4/3 H_3) / 2` of each row, H_n the entropy of its distribution of n-grams in bits.

    Args:
        rows: R texts as words or token ids.

    Returns:
        (R,) bits, at least 0, not reduced; higher is richer, 0 where one n-gram is repeated all over or the row is too
        short to have two.

    Source:
        Meng et al., ROME (arXiv 2202.05262), as RWKU (arXiv 2406.10890) measures fluency.
    """
    return np.array([sum(weight * _entropy(row, n) for n, weight in ENTROPY_WEIGHTS.items()) / 2 for row in rows])


def _entropy(tokens: Tokens, n: int) -> float:
    counts = np.array(list(Counter(_ngrams(tokens, n)).values()), dtype=np.float64)
    shares = counts / counts.sum() if len(counts) else counts
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def repetition(rows: Sequence[Tokens], *, n: int = 4) -> Array:
    """Share of a row's n-grams that stood in it before, `1 - unique n-grams / n-grams`.

    Args:
        rows: R texts as words or token ids.
        n: length of the n-grams, at least 1; with 1 it is one minus the type-token ratio.

    Returns:
        (R,) in [0, 1), not reduced; lower is better, NaN for a row of fewer than n tokens.

    Raises:
        MetricError: n is below 1.

    Source:
        Welleck et al. (arXiv 1908.04319), seq-rep-n.
    """
    if n < 1:
        raise MetricError(f"n-grams need a length of at least 1, got {n}", hint="4 is the published choice")
    return np.array([_repeated(_ngrams(row, n)) for row in rows], dtype=np.float64)


def _repeated(ngrams: list[tuple[Hashable, ...]]) -> float:
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else float("nan")


def _ngrams(tokens: Tokens, n: int) -> list[tuple[Hashable, ...]]:
    return [tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1)]


class Richness(NamedTuple):
    """How varied the vocabulary of each row is; each (R,), not reduced, NaN where it is undefined."""

    type_token: Array
    """`V / N`, distinct over all tokens, in (0, 1]."""
    root_type_token: Array
    """`V / sqrt(N)`."""
    brunet: Array
    """`N^(V^-0.172)`; lower is richer."""
    honore: Array
    """`100 ln N / (1 - V_1 / V)`, V_1 the tokens that stand there once; undefined where all of them do."""


def lexical_richness(rows: Sequence[Tokens]) -> Richness:
    """Four measures of N tokens of which V are distinct.

    Args:
        rows: R texts as words or token ids; an empty row has no value.

    Source:
        Unique-token ratio of ECO (arXiv 2406.07933); the other three as in ReLearn's evaluation (arXiv 2502.11190):
        Guiraud (1954), Brunet (1978), Honore (1979). RECONSTRUCTED: Brunet's exponent and Honore's factor are the
        textbook ones.
    """
    counts = [Counter(row) for row in rows]
    n = np.array([counted.total() for counted in counts], dtype=np.float64)
    v = np.array([len(counted) for counted in counts], dtype=np.float64)
    once = np.array([sum(count == 1 for count in counted.values()) for counted in counts], dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        honore = 100 * np.log(n) / (1 - once / v)
        found = Richness(v / n, v / np.sqrt(n), n ** (v**-0.172), honore)
    return Richness(*(np.where((n > 0) & np.isfinite(values), values, np.nan) for values in found))


def perplexity(
    logp: Ragged,  # R rows of token log-probabilities under another model, nats
) -> Array:  # (R,)
    """`exp(L)` of each row, L its average loss under a model that did not write it; lower is more fluent.

    Returns:
        (R,) at least 1, not reduced; NaN for a row without tokens. A mean over rows is ruled by the worst of them:
        `perplexity_estimate` weighs tokens alike.

    Source:
        As in ReLearn (arXiv 2502.11190) and ECO (arXiv 2406.07933), whose judging models differ.
    """
    return np.exp(mean_loss(logp))


def perplexity_estimate(
    logp: Ragged,  # R rows, nats
    weights: Array | None,  # (draws, R)
    *,
    name: str,
    allow_missing: bool = False,
) -> Estimate:
    """Perplexity of all rows together, `exp(-sum log p / tokens)`, with rows resampled.

    Args:
        logp: of every token of the rows.
        weights: how often each row is drawn (`draw_weights`); None: no interval.
        name: of the metric, for messages.
        allow_missing: accept more than 1 % of rows without tokens.

    Raises:
        MetricError: as `valid_column`.
    """
    column = Column(-logp.sums(), logp.lengths > 0, weights)
    kept = valid_column(column, name=name, allow_missing=allow_missing)
    tokens = logp.lengths[column.valid].astype(np.float64)
    draws = None
    if kept.weights is not None:
        draws = np.exp(mean_draws(kept.values, kept.weights) / mean_draws(tokens, kept.weights))
    value = float(np.exp(kept.values.sum() / tokens.sum()))
    return Estimate(value, draws, len(tokens), len(logp))
