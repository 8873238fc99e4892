"""Forget quality: the exact two-sample Kolmogorov-Smirnov test between an unlearned and a retrained model.

The p-value is counted in integers. Library routines can fall back to the asymptotic formula without saying so in
the result, and a series of p-values must not mix the two.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from expunge.errors import MetricError
from expunge.metrics.ragged import Array


class KSTest(NamedTuple):
    """Two-sided, two samples."""

    statistic: float
    """D, the largest distance between the two empirical distribution functions, in [0, 1]."""
    pvalue: float
    """P(D' >= D) when both samples come from one distribution; 0.0 where it is below the smallest float."""


def ks_test(
    first: Array,  # (n,)
    second: Array,  # (m,)
) -> KSTest:
    """Whether two samples could come from one distribution; invariant under any monotone map of both.

    Equal sizes, `h = n D`: `p = 2 sum_{j >= 1, j h <= n} (-1)^(j-1) C(2n, n - j h) / C(2n, n)`. Unequal sizes: the
    share of lattice paths from (0, 0) to (n, m) that leave the band `|i m - j n| < n m D`. Ties are resolved as by
    the empirical distribution functions.

    Args:
        first: one sample, in any order.
        second: the other; infinities are allowed (they have an order), NaN is not.

    Returns:
        Statistic and exact p-value. The p-value saturates: report D and both sizes beside it.

    Raises:
        MetricError: a sample is empty or holds a NaN.

    Source:
        TOFU (arXiv 2401.06121), section 2.2.2; Hodges (1958) for the lattice count.
    """
    for name, sample in (("first", first), ("second", second)):
        if len(sample) == 0:
            raise MetricError(f"the {name} sample of a KS test is empty", hint="both models need measured rows")
        if bad := int(np.isnan(sample).sum()):
            raise MetricError(f"{bad} of {len(sample)} values of the {name} sample are not a number")
    n, m = len(first), len(second)
    height = _height(np.sort(first), np.sort(second))
    outside, paths = _paths_at_or_beyond(n, m, height), math.comb(n + m, n)
    return KSTest(height / (n * m), outside / paths)


def _height(first: Array, second: Array) -> int:
    """`n m D` as an integer: the largest `|i m - j n|` over the steps of the two distribution functions."""
    both = np.concatenate([first, second])
    i = np.searchsorted(first, both, side="right")
    j = np.searchsorted(second, both, side="right")
    return int(np.abs(i * len(second) - j * len(first)).max())


def _paths_at_or_beyond(n: int, m: int, height: int) -> int:
    """How many lattice paths reach `|i m - j n| >= height` somewhere."""
    if height == 0:
        return math.comb(n + m, n)
    return _reflections(n, height // n) if n == m else math.comb(n + m, n) - _paths_inside(n, m, height)


def _reflections(n: int, h: int) -> int:
    """Equal sizes: paths that reach `|i - j| >= h`, by repeated reflection."""
    total, sign, binomial = 0, 2, math.comb(2 * n, n)
    for k in range(1, n + 1):
        binomial = binomial * (n - k + 1) // (n + k)  # C(2n, n - k)
        if k % h == 0:
            total += sign * binomial
            sign = -sign
    return total


def _paths_inside(n: int, m: int, height: int) -> int:
    """Paths that stay strictly inside the band, counted column by column."""
    start, ways = 0, [1]
    for i in range(n + 1):
        low = max(0, (i * m - height) // n + 1)
        high = min(m, -((-i * m - height) // n) - 1)
        before = (ways[j - start] if start <= j < start + len(ways) else 0 for j in range(low, high + 1))
        start, ways = low, list(accumulate(before))
    return ways[m - start] if ways else 0
