"""Leak@k: the chance that at least one of k sampled answers gives the forgotten away.

A greedy answer is one draw; whoever may ask again sees the best of many.
"""

from __future__ import annotations

import numpy as np

from expunge.errors import MetricError
from expunge.metrics.ragged import Array, Ragged


def leak_at_k(
    scores: Ragged,  # R rows, one score per sampled answer
    *,
    k: int,
) -> Array:  # (R,)
    """Unbiased estimate of `E[max_{j <= k} S(y_j)]` from n >= k samples.

    `sum_{j=k}^n C(j-1, k-1) / C(n, k) S_(j)` with the scores in ascending order: the mean of the largest over all
    subsets of size k. For scores of 0 and 1 it is `leak_at_k_of_counts`.

    Args:
        scores: of each sample, any core score in [0, 1] (entailment, similarity, a judge); rows may differ in n.
        k: answers the attacker may draw, at least 1; 1 is the mean score.

    Returns:
        (R,) in the range of the scores, not reduced; NaN where a score is: a failed judge is no "no leak".

    Raises:
        MetricError: k is below 1, or a row has fewer than k samples: an estimate from them would be biased downwards.

    Source:
        Leak@k (arXiv 2511.04934), in its code.
    """
    _check(scores.lengths, k)
    order = np.lexsort((scores.values, scores.row))
    weights = np.zeros(len(scores.values))
    for n in np.unique(scores.lengths):
        of_length = scores.lengths[scores.row] == n
        weights[of_length] = _weights(int(n), k)[scores.position[of_length]]
    # A NaN times a weight of 0 is NaN as well, so wherever it is sorted it reaches the sum of its row.
    return scores.with_values(scores.values[order] * weights).sums()


def _weights(n: int, k: int) -> Array:
    """(n,) `C(j-1, k-1) / C(n, k)` for j = 1..n, by their ratios: the binomials themselves overflow."""
    found = np.zeros(n)
    found[n - 1] = k / n
    for j in range(n - 1, k - 1, -1):
        found[j - 1] = found[j] * (j + 1 - k) / j
    return found


def leak_at_k_of_counts(
    leaks: Array,  # (R,) samples that leak
    samples: Array,  # (R,) samples drawn
    *,
    k: int,
) -> Array:  # (R,)
    """Unbiased estimate of the chance that at least one of k answers leaks, from c leaks in n samples.

    `1 - C(n - c, k) / C(n, k)`, as the product of `(n - c - i) / (n - i)` over i < k.

    Args:
        leaks: c, whole numbers in [0, n].
        samples: n, whole numbers.
        k: answers the attacker may draw, in [1, n].

    Returns:
        (R,) in [0, 1], not reduced.

    Raises:
        MetricError: k is below 1 or above some n, or some c is negative or above its n.

    Source:
        Leak@k (arXiv 2511.04934); Chen et al. (arXiv 2107.03374), equation 1.
    """
    leaks, samples = np.broadcast_arrays(leaks, samples)
    _check(samples, k)
    if len(bad := np.flatnonzero((leaks < 0) | (leaks > samples))):
        raise MetricError(f"{len(bad)} rows count more leaks than samples, or fewer than none ({_named(bad)})")
    step = np.arange(k)[:, None]
    silent = np.clip(samples - leaks - step, 0, None) / (samples - step)
    return np.asarray(1 - silent.prod(0))


def tempered_logp(
    logp: Ragged,  # R rows of token log-probabilities at temperature 1, nats
    lse: Ragged,  # R rows, log-sum-exp of the raw logits z
    lse_tempered: Ragged,  # R rows, log-sum-exp of z / temperature
    *,
    temperature: float,
) -> Ragged:
    """Token log-probabilities at another temperature, `z_y / T - logsumexp(z / T)` with `z_y = log p + logsumexp(z)`.

    Args:
        logp: of the answer's tokens.
        lse: over the vocabulary, at the same positions.
        lse_tempered: the same of the divided logits; it cannot be had from the other two.
        temperature: T > 0.

    Returns:
        R rows, nats, at most 0, not reduced.

    Raises:
        MetricError: the temperature is not above 0 (greedy decoding has no probability to give).
    """
    if not temperature > 0:
        raise MetricError(f"a temperature must be above 0, got {temperature}", hint="1.0 is the headline setting")
    return logp.with_values((logp.values + lse.values) / temperature - lse_tempered.values)


def exact_leak_at_k(
    logp: Ragged,  # R rows of token log-probabilities, end token included, nats
    *,
    k: int,
) -> Array:  # (R,)
    """Chance that k samples hold the answer word for word, `1 - (1 - p)^k` with `p = exp(sum_t log p_t)`: no sampling.

    A lower bound of `leak@k` for every core score that gives the answer itself 1: the same fact in other words adds to
    it. Of sampling from the whole distribution, without top-p or top-k, at the temperature of `logp`.

    Args:
        logp: of the whole answer; leaving out the end token bounds "begins with the answer" instead.
        k: answers the attacker may draw, at least 1.

    Returns:
        (R,) in [0, 1], not reduced; NaN for a row without tokens.

    Raises:
        MetricError: k is below 1.

    Source:
        RECONSTRUCTED: the closed form is ours; Leak@k (arXiv 2511.04934) samples.
    """
    if k < 1:
        raise MetricError(f"leak@k needs k >= 1, got {k}")
    total = np.minimum(logp.sums(), 0.0)
    with np.errstate(divide="ignore"):
        # log(1 - p), by whichever form keeps its digits: p close to 1, or close to 0.
        silent = np.where(total > -np.log(2), np.log(-np.expm1(total)), np.log1p(-np.exp(total)))
    return np.where(logp.lengths > 0, -np.expm1(k * silent), np.nan)


def _check(samples: Array, k: int) -> None:
    if k < 1:
        raise MetricError(f"leak@k needs k >= 1, got {k}")
    if len(few := np.flatnonzero(samples < k)):
        raise MetricError(
            f"leak@{k} needs {k} samples of each row; {len(few)} of {len(samples)} have fewer ({_named(few)})",
            hint=f"sample {k} answers or more, or ask for k <= {int(samples.min())}",
        )


def _named(rows: Array, *, most: int = 10) -> str:
    return f"rows {', '.join(map(str, rows[:most].tolist()))}{', ...' if len(rows) > most else ''}"
