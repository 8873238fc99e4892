"""Bootstrap intervals, by counting how often each row is drawn: one weight matrix per split serves every metric.

Rows of one person are correlated, so whole groups are drawn where there are several; intervals over rows would be too
narrow. Of one group alone rows are drawn: the interval then speaks of its questions.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from expunge.metrics.ragged import Array

DRAWS = 1000
LEVEL = 0.95


class Interval(NamedTuple):
    """Both ends, or neither where there is nothing to resample."""

    low: float | None
    high: float | None


def draw_weights(
    groups: Sequence[str | None],
    *,
    label: str,
    draws: int = DRAWS,
    seed: int = 0,
) -> Array | None:  # (draws, n)
    """How often each of n rows is drawn, with replacement, in each draw.

    Args:
        groups: (n,) group of each row; rows without one are groups of their own.
        label: names the split, so that two splits of one size are drawn independently.
        draws: number of draws.
        seed: the same seed, label and groups give the same draws.

    Returns:
        (draws, n) whole numbers as float64; None with fewer than two rows: there is nothing to resample.
    """
    several = len(set(groups)) > 1
    names = [f"group {group}" if several and group is not None else f"row {row}" for row, group in enumerate(groups)]
    unique, index = np.unique(np.array(names, dtype=object).astype(str), return_inverse=True)
    if len(unique) < 2:
        return None
    generator = np.random.default_rng([seed, zlib.crc32(label.encode())])
    drawn = generator.integers(len(unique), size=(draws, len(unique)))
    cells = drawn + len(unique) * np.arange(draws)[:, None]
    counts = np.bincount(cells.ravel(), minlength=draws * len(unique)).reshape(draws, len(unique))
    return np.asarray(counts[:, index], dtype=np.float64)


def mean_draws(
    values: Array,  # (n,)
    weights: Array,  # (draws, n)
) -> Array:  # (draws,)
    """The weighted mean of `values` in each draw; NaN in a draw that took no row."""
    with np.errstate(invalid="ignore"):
        return np.asarray((weights @ values) / weights.sum(-1))


def interval(
    draws: Array | None,  # (draws,)
    *,
    level: float = LEVEL,
) -> Interval:
    """The percentile interval of a metric's draws.

    Draws without a number (every row of a group was excluded) are left out.
    """
    if draws is None or not np.isfinite(draws).any():
        return Interval(None, None)
    tail = (1 - level) / 2
    low, high = np.quantile(draws[np.isfinite(draws)], [tail, 1 - tail])
    return Interval(float(low), float(high))
