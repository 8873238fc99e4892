"""UWC: how much of an unlearned model may be mixed in before the retain set suffers, so that forgetting compares alone.

Methods that keep different shares of the retain set cannot be ranked by what they forgot. Mixed back to the same share
they can, by the forget score at that point.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from expunge.errors import MetricError
from expunge.metrics.ragged import Array


class Mixing(NamedTuple):
    """The largest admissible share of the unlearned model."""

    alpha: float
    """In [0, 1]; 0: nothing of it may be mixed in."""
    place: int
    """Where `alpha` stands among the shares that were tried; the forget score at this place is the one to compare."""
    threshold: float
    """Retain score that had to be reached."""
    monotone: bool
    """Whether the retain score never rose with the share; otherwise a finer grid may find another answer."""


def largest_mixing(
    alphas: Sequence[float],
    retain: Array,  # (A,)
    *,
    keep: float = 0.9,
) -> Mixing:
    """The largest alpha whose model `(1 - alpha) start + alpha unlearned` keeps `keep` of the start's retain score.

    Args:
        alphas: (A,) shares of the unlearned model, rising from 0.
        retain: (A,) score on the retain set at each, higher is better; UWC takes extraction strength.
        keep: in (0, 1]; published: 0.9 and 0.95.

    Returns:
        The largest share that was tried and suffices, also where a smaller one does not: `monotone` tells.

    Raises:
        MetricError: the shares do not rise from 0 to at most 1, there is not one score each, a score is negative or
            not a number, or `keep` is outside (0, 1].

    Source:
        UWC (arXiv 2406.09179); its code stores 1 - alpha.
    """
    shares, scores = np.asarray(alphas, dtype=np.float64), np.asarray(retain, dtype=np.float64)
    _check(shares, scores, keep)
    threshold = float(keep * scores[0])
    place = int(np.flatnonzero(scores >= threshold)[-1])
    return Mixing(float(shares[place]), place, threshold, bool((np.diff(scores) <= 0).all()))


def _check(shares: Array, scores: Array, keep: float) -> None:
    if shares.shape != scores.shape or shares.ndim != 1 or len(shares) == 0:
        raise MetricError(f"each share needs one retain score, found {shares.size} shares and {scores.size} scores")
    if shares[0] != 0 or not (np.diff(shares) > 0).all() or shares[-1] > 1:
        raise MetricError(
            f"shares of the unlearned model must rise from 0 to at most 1, got {', '.join(map(str, shares.tolist()))}",
            hint="0 is the starting model, whose retain score sets the threshold",
        )
    if bad := int((~(scores >= 0)).sum()):
        raise MetricError(f"{bad} of {len(scores)} retain scores are negative or not a number")
    if not 0 < keep <= 1:
        raise MetricError(f"the share of the retain score to keep must be in (0, 1], got {keep}", hint="0.9 is usual")
