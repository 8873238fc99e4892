"""From per-row values to a score: exclusion, the share that must be valid, the interval.

An `Estimate` keeps the bootstrap draws, so that a composite metric resamples each of its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from expunge.errors import MetricError
from expunge.metrics.auc import auc_draws, fpr_at_95_draws
from expunge.metrics.bootstrap import interval, mean_draws
from expunge.metrics.membership import privleak
from expunge.metrics.ragged import Array
from expunge.metrics.score import Direction, Score
from expunge.metrics.utility import harmonic_mean

MIN_VALID = 0.99
"""Share of rows that must enter a metric unless missing ones are allowed."""


class Column(NamedTuple):
    """One number per row of a split, and how the split is resampled."""

    values: Array
    """(n,)"""
    valid: Array
    """(n,) bool; False where the row has nothing to measure (an empty span)."""
    weights: Array | None = None
    """(draws, n); None: no interval."""
    rows: Sequence[int] | None = None
    """Row numbers, for messages."""


class Estimate(NamedTuple):
    """A value and its bootstrap draws."""

    value: float
    draws: Array | None
    n: int
    n_total: int

    def score(self, direction: Direction, *, ideal: float | None = None) -> Score:
        """The estimate as a `Score` with its 95 % interval."""
        low, high = interval(self.draws)
        return Score(self.value, low, high, self.n, self.n_total, ideal, direction)


def valid_column(column: Column, *, name: str, allow_missing: bool = False) -> Column:
    """The rows that can be measured.

    Raises:
        MetricError: there is no row, none is valid, too few are, or a valid one is not a finite number.
    """
    total, kept = len(column.values), int(column.valid.sum())
    if kept == 0:
        raise MetricError(f"{name}: none of {total} rows can be measured", hint="check that the split has answers")
    if kept < MIN_VALID * total and not allow_missing:
        raise MetricError(
            f"{name}: only {kept} of {total} rows can be measured ({_named(column, ~column.valid)} cannot)",
            hint="mend those rows, or accept the rest with --allow-missing",
        )
    broken = column.valid & ~np.isfinite(column.values)
    if broken.any():
        raise MetricError(
            f"{name}: {int(broken.sum())} of {total} rows are not a finite number ({_named(column, broken)})",
            hint="the model gives NaN or infinite logits there; check its weights and dtype",
        )
    if kept == total:
        return column
    weights = None if column.weights is None else column.weights[:, column.valid]
    return Column(column.values[column.valid], np.ones(kept, dtype=bool), weights)


def _named(column: Column, which: Array, *, most: int = 10) -> str:
    index = np.flatnonzero(which)
    rows = index if column.rows is None else np.asarray(column.rows)[index]
    text = ", ".join(str(int(row)) for row in rows[:most])
    return f"rows {text}{', ...' if len(rows) > most else ''}"


def mean_estimate(column: Column, *, name: str, allow_missing: bool = False) -> Estimate:
    """The mean over a split's valid rows.

    Raises:
        MetricError: as `valid_column`.
    """
    kept = valid_column(column, name=name, allow_missing=allow_missing)
    draws = None if kept.weights is None else mean_draws(kept.values, kept.weights)
    return Estimate(float(kept.values.mean()), draws, len(kept.values), len(column.values))


def privleak_estimate(attack: Estimate, reference_auc: float, *, eps: float = 0.0) -> Estimate:
    """PrivLeak of an attack, in percent; the interval is the model's own, as the reference's AUC counts as fixed.

    Args:
        attack: its AUC on the measured model, 1 where the forget rows are recognised.
        reference_auc: its AUC on the retrained model.
        eps: as `expunge.metrics.membership.privleak`.

    Raises:
        MetricError: as `expunge.metrics.membership.privleak`.
    """
    draws = None
    if attack.draws is not None:
        draws = np.array([privleak(float(auc), reference_auc, eps=eps) for auc in attack.draws])
    return Estimate(privleak(attack.value, reference_auc, eps=eps), draws, attack.n, attack.n_total)


PairDraws = Callable[[Array, Array, Array, Array], Array]


def _pair(statistic: PairDraws, first: Column, second: Column, name: str, allow_missing: bool) -> Estimate:
    one = valid_column(first, name=name, allow_missing=allow_missing)
    two = valid_column(second, name=name, allow_missing=allow_missing)
    ones = np.ones((1, len(one.values))), np.ones((1, len(two.values)))
    draws = None
    if one.weights is not None and two.weights is not None:
        draws = statistic(one.values, two.values, one.weights, two.weights)
    return Estimate(
        float(statistic(one.values, two.values, *ones)[0]),
        draws,
        len(one.values) + len(two.values),
        len(first.values) + len(second.values),
    )


def auc_estimate(positive: Column, negative: Column, *, name: str, allow_missing: bool = False) -> Estimate:
    """P(positive > negative), ties half; both sides are resampled.

    Raises:
        MetricError: as `valid_column`, for either side.
    """
    return _pair(auc_draws, positive, negative, name, allow_missing)


def fpr95_estimate(accepted: Column, rejected: Column, *, name: str, allow_missing: bool = False) -> Estimate:
    """Share of `rejected` passing the threshold that lets 95 % of `accepted` pass; both sides are resampled.

    Raises:
        MetricError: as `valid_column`, for either side.
    """
    return _pair(fpr_at_95_draws, accepted, rejected, name, allow_missing)


def harmonic_estimate(parts: Mapping[str, Sequence[Estimate]]) -> Estimate:
    """Harmonic mean of metrics over several splits, each part resampled with its split.

    Args:
        parts: split -> its metrics; a split's rows count once.

    Raises:
        MetricError: a part is negative, or there is none.
    """
    flat = [part for split in parts.values() for part in split]
    return Estimate(
        float(harmonic_mean(np.array([part.value for part in flat]))),
        _harmonic_draws([part.draws for part in flat]),
        sum(min(part.n for part in split) for split in parts.values()),
        sum(max(part.n_total for part in split) for split in parts.values()),
    )


def _harmonic_draws(parts: Sequence[Array | None]) -> Array | None:
    known = [draws for draws in parts if draws is not None]
    if len(known) < len(parts):
        return None
    together = np.stack(known, axis=-1)
    return harmonic_mean(together[np.isfinite(together).all(-1)])


def average_estimate(parts: Sequence[Estimate]) -> Estimate:
    """The unweighted mean of one metric over several splits, `1/S sum_s m_s`, each split resampled by itself.

    A small split counts as much as a large one. A split of one row has nothing to resample and stays as it is in every
    draw.

    Args:
        parts: at least one split's mean.

    Returns:
        The estimate, with the rows of all splits together; without draws where no split has any.
    """
    together = pooled_estimate([part._replace(n=1) for part in parts])
    return together._replace(n=sum(part.n for part in parts))


def pooled_estimate(parts: Sequence[Estimate]) -> Estimate:
    """The mean over the rows of several splits: `sum_s n_s m_s / sum_s n_s`, each split resampled by itself.

    A split of one row has nothing to resample and stays as it is in every draw.

    Args:
        parts: at least one split's mean.

    Returns:
        The estimate; without draws where no split has any.
    """
    sizes = np.array([part.n for part in parts], dtype=np.float64)
    known = [part.draws for part in parts if part.draws is not None]
    draws = None
    if known:
        columns = [np.full(len(known[0]), part.value) if part.draws is None else part.draws for part in parts]
        draws = sizes @ np.stack(columns) / sizes.sum()
    return Estimate(
        float(sizes @ np.array([part.value for part in parts]) / sizes.sum()),
        draws,
        sum(part.n for part in parts),
        sum(part.n_total for part in parts),
    )
