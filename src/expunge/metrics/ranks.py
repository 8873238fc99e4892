"""How far up the right tokens stand among all tokens, under teacher forcing: PISTOL's two scores.

Its release compares the j-th token of the answer with the j-th step of a free generation, which measures nothing from
the first other token on; here every rank is taken after the true beginning.
"""

from __future__ import annotations

import numpy as np

from expunge.errors import MetricError
from expunge.metrics.ragged import Array, Ragged


def reciprocal_rank(
    rank: Ragged,  # R rows, 1 = the greedy choice
) -> Array:  # (R,)
    """Mean of `1 / rank_t` over a row's tokens (MRR).

    Args:
        rank: one plus the number of tokens with a larger logit.

    Returns:
        (R,) in (0, 1], not reduced; NaN for a row without tokens.

    Raises:
        MetricError: a rank is below 1.

    Source:
        PISTOL (arXiv 2406.16810), with ranks under teacher forcing.
    """
    _check(rank)
    return rank.with_values(1 / rank.values.astype(np.float64)).means()


def top_hit_rate(
    rank: Ragged,  # R rows
    *,
    within: int = 100,
) -> Array:  # (R,)
    """Share of a row's tokens among the `within` likeliest (THR).

    Args:
        rank: one plus the number of tokens with a larger logit.
        within: at least 1; with 1 it is exact memorisation.

    Returns:
        (R,) in [0, 1], not reduced; NaN for a row without tokens.

    Raises:
        MetricError: a rank or `within` is below 1.

    Source:
        PISTOL (arXiv 2406.16810), with ranks under teacher forcing.
    """
    _check(rank)
    if within < 1:
        raise MetricError(f"a hit rate needs the likeliest 1 or more tokens, got {within}", hint="100 is published")
    return rank.with_values((rank.values <= within).astype(np.float64)).means()


def _check(rank: Ragged) -> None:
    if bad := int((~(rank.values >= 1)).sum()):
        rows = np.unique(rank.row[~(rank.values >= 1)])
        raise MetricError(
            f"{bad} of {len(rank.values)} ranks are below 1 (rows {', '.join(map(str, rows[:10].tolist()))})",
            hint="a rank is one plus the number of larger logits",
        )
