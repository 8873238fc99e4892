"""Whether what one request erased comes back while later requests are carried out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from expunge.metrics.bootstrap import draw_weights, interval, mean_draws
from expunge.metrics.estimate import Column, mean_estimate
from expunge.metrics.ragged import Array
from expunge.metrics.score import Direction, Score


class Rise(NamedTuple):
    """The largest rise of a request's score between two later points of the sequence."""

    value: float
    """Score at the later point minus score at the earlier one; at least 0."""
    low: float | None
    """Lower end of the paired 95 % interval; None where there are fewer than two rows."""
    high: float | None
    since: int
    """Requests done at the earlier point."""
    until: int
    """Requests done at the later point; `since` where the score never rose."""

    @property
    def resurfaced(self) -> bool:
        """Whether the rise is more than the choice of rows explains."""
        return self.until > self.since and (self.low is None or self.low > 0)


def units(groups: Sequence[str | None]) -> list[str | None]:
    """What is resampled: groups, or rows where there is only one group."""
    return list(groups) if len(set(groups)) > 1 else [None] * len(groups)


def stage_score(
    values: Array,  # (R,)
    groups: Sequence[str | None],
    *,
    label: str,
    direction: Direction,
) -> Score:
    """The mean over the rows of one request, or of the retain set, at one point of the sequence.

    Args:
        values: (R,) one number per row; NaN where a row has nothing to measure.
        groups: (R,) person of each row.
        label: names the rows in errors; the same label is resampled alike at every point.
        direction: which way is better.

    Raises:
        MetricError: more than 1 % of the rows have nothing to measure.
    """
    column = Column(values, ~np.isnan(values), draw_weights(units(groups), label=label))
    return mean_estimate(column, name=label).score(direction)


def largest_rise(
    stages: Sequence[Array],  # each (R,)
    groups: Sequence[str | None],
    *,
    first: int,
    label: str,
) -> Rise:
    """`max_{i < j} (mean_j - mean_i)` over the points from the request's own on, with the interval of that pair.

    The interval resamples rows (people, where there are several) for both points alike. It is the interval of one
    given pair: that the pair was chosen for its rise is not corrected for.

    Args:
        stages: per point of the sequence, from right after the request on, one number per row of the request.
        groups: (R,) person of each row.
        first: requests done at the first point.
        label: as in `stage_score`.
    """
    means = [float(np.nanmean(values)) for values in stages]
    pairs = [(means[j] - means[i], i, j) for j in range(len(means)) for i in range(j)]
    value, i, j = max(pairs, default=(0.0, 0, 0), key=lambda pair: pair[0])
    if value <= 0:
        lowest = first + int(np.argmin(means))
        return Rise(0.0, None, None, lowest, lowest)
    change = stages[j] - stages[i]
    weights = draw_weights(units(groups), label=label)
    valid = ~np.isnan(change)
    low, high = interval(None if weights is None else mean_draws(change[valid], weights[:, valid]))
    return Rise(value, low, high, first + i, first + j)
