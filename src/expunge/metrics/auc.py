"""How well one score separates two groups of rows: AUROC, and the false-positive rate at 95 % recall.

Both take weights, (draws, rows) counts of each row in each bootstrap draw, and then give one number per draw.
"""

from __future__ import annotations

import numpy as np

from expunge.errors import MetricError
from expunge.metrics.ragged import Array


def auc(
    positive: Array,  # (n,)
    negative: Array,  # (m,)
) -> float:
    """P(a positive scores above a negative), ties counting half: 1 = perfectly separated, 0.5 = indistinguishable.

    Raises:
        MetricError: a group is empty or a score is not a number.

    Source:
        Hanley and McNeil (1982); equals the Mann-Whitney statistic over n m.
    """
    return float(auc_draws(positive, negative, np.ones((1, len(positive))), np.ones((1, len(negative))))[0])


def placements(
    positive: Array,  # (n,)
    negative: Array,  # (m,)
) -> Array:  # (n,)
    """Share of the negatives that score below each positive, ties counting half; their mean is `auc`.

    Returns:
        (n,) in [0, 1], in the order of `positive`; not reduced.

    Raises:
        MetricError: a group is empty or a score is not a number.

    Source:
        Hanley and McNeil (1997), placement values.
    """
    _check(positive, negative)
    ranked = np.sort(negative)
    below = np.searchsorted(ranked, positive, side="left") + np.searchsorted(ranked, positive, side="right")
    return np.asarray(below / (2 * len(negative)))


def auc_draws(
    positive: Array,  # (n,)
    negative: Array,  # (m,)
    positive_weights: Array,  # (draws, n)
    negative_weights: Array,  # (draws, m)
) -> Array:  # (draws,)
    """`auc` with weighted rows, once per draw; NaN in a draw that took no row of one group.

    Raises:
        MetricError: a group is empty or a score is not a number.
    """
    _check(positive, negative)
    order = np.argsort(negative, kind="stable")
    ranked = negative[order]
    below = _cumulative(negative_weights[:, order])  # (draws, m + 1)
    wins = below[:, np.searchsorted(ranked, positive, side="left")]
    wins += below[:, np.searchsorted(ranked, positive, side="right")]
    with np.errstate(invalid="ignore"):
        return np.asarray((wins * positive_weights).sum(-1) / (2 * positive_weights.sum(-1) * below[:, -1]))


def fpr_at_95(
    accepted: Array,  # (n,)
    rejected: Array,  # (m,)
) -> float:
    """Share of `rejected` rows that pass the largest threshold that lets at least 95 % of `accepted` rows pass.

    Args:
        accepted: scores of the rows that should pass (score >= threshold).
        rejected: scores of the rows that should not.

    Returns:
        In [0, 1]; 0 = perfectly separated.

    Raises:
        MetricError: a group is empty or a score is not a number.

    Source:
        Liu et al., energy-based out-of-distribution detection (arXiv 2010.03759).
    """
    return float(fpr_at_95_draws(accepted, rejected, np.ones((1, len(accepted))), np.ones((1, len(rejected))))[0])


def fpr_at_95_draws(
    accepted: Array,  # (n,)
    rejected: Array,  # (m,)
    accepted_weights: Array,  # (draws, n), whole numbers
    rejected_weights: Array,  # (draws, m), whole numbers
) -> Array:  # (draws,)
    """`fpr_at_95` with weighted rows, once per draw; NaN in a draw that took no row of one group.

    Raises:
        MetricError: a group is empty or a score is not a number.
    """
    _check(accepted, rejected)
    order = np.argsort(-accepted, kind="stable")
    passed = _cumulative(accepted_weights[:, order])[:, 1:]
    # In whole numbers, so that exactly 95 % is not lost to rounding.
    threshold = accepted[order][np.argmax(100 * passed >= 95 * passed[:, -1:], axis=1)]
    rank = np.argsort(rejected, kind="stable")
    below = _cumulative(rejected_weights[:, rank])
    at = np.searchsorted(rejected[rank], threshold, side="left")
    with np.errstate(invalid="ignore"):
        share = (below[:, -1] - below[np.arange(len(at)), at]) / below[:, -1]
    return np.where(passed[:, -1] > 0, share, np.nan)


def _cumulative(weights: Array) -> Array:
    return np.concatenate([np.zeros((len(weights), 1)), np.cumsum(weights, axis=1)], axis=1)


def _check(first: Array, second: Array) -> None:
    if len(first) == 0 or len(second) == 0:
        raise MetricError(
            f"separating two groups needs both, found {len(first)} and {len(second)} rows",
            hint="measure a split for each side",
        )
    if bad := int(np.isnan(first).sum() + np.isnan(second).sum()):
        raise MetricError(f"{bad} of {len(first) + len(second)} scores are not a number")
