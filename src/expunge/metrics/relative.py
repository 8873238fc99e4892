"""Metrics of a model relative to the model it was made from, over the same rows and the same resampled people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from expunge.metrics.bootstrap import draw_weights, mean_draws
from expunge.metrics.estimate import Column, Estimate, valid_column
from expunge.metrics.ragged import Array


class Change(NamedTuple):
    """The same rows scored by two models."""

    after: Column
    before: Column
    groups: list[str | None]
    """(n,) person of each row."""

    def joint(self, *, name: str, allow_missing: bool) -> Change:
        """Without the rows that either model leaves nothing to measure in.

        Raises:
            MetricError: too few rows are left, or one is not a finite number.
        """
        keep = self.after.valid & self.before.valid
        after, before = (
            valid_column(column._replace(valid=keep), name=name, allow_missing=allow_missing)
            for column in (self.after, self.before)
        )
        return Change(after, before, [group for group, kept in zip(self.groups, keep, strict=True) if kept])


def ratio_estimate(change: Change, *, name: str, allow_missing: bool = False) -> Estimate:
    """Mean after over mean before; each draw resamples both models' rows alike.

    Raises:
        MetricError: as `Change.joint`.
    """
    kept = change.joint(name=name, allow_missing=allow_missing)
    draws = None
    if kept.after.weights is not None:
        before = mean_draws(kept.before.values, kept.after.weights)
        draws = _share(mean_draws(kept.after.values, kept.after.weights), before)
    value = float(kept.after.values.mean() / kept.before.values.mean())
    return Estimate(value, draws, len(kept.after.values), len(change.after.values))


def above_chance(
    score: Array,
    start: Array,
    *,
    chance: float,
) -> Array:
    """Share of what was known above guessing that is left, `(score - chance) / (start - chance)`.

    Of accuracies it tells forgetting from a fall towards guessing: 0.25 of four options is nothing known. Below 0 the
    model avoids the right option, which gives it away.

    Args:
        score: accuracy after unlearning.
        start: accuracy of the starting model, same shape.
        chance: what guessing scores, e.g. 0.25.

    Returns:
        Not reduced, one number per element; NaN where the starting model did not beat guessing.

    Source:
        The part above chance that Doshi and Stickland (arXiv 2411.12103) compare; RECONSTRUCTED.
    """
    return _share(score - chance, start - chance)


def drop(
    after: Array,
    before: Array,
) -> Array:
    """Share of a mean score that is gone, `1 - after / before`, clipped to [0, 1]; NaN where `before` is 0.

    Not reduced: one number per element.
    """
    return np.asarray(np.clip(1 - _share(after, before), 0, 1))


def dependence_index(
    trained: Array,  # (...)
    others: Array,  # (F, ...)
) -> Array:  # (...)
    """`1 - mean_f min(drop_f / drop_trained, 1)`: how much a drop in the trained form fails to reach other forms.

    Args:
        trained: drop in the form that is asked for most directly, in [0, 1].
        others: drops in F other forms, in [0, 1].

    Returns:
        In [0, 1], reduced over forms only: 0 where every form dropped at least as much, 1 where no other dropped;
        NaN where the trained form did not drop.

    Source:
        Form independence after ORT (arXiv 2506.07795), which compares forms by mean probability and gives no index;
        the index is ours.
    """
    return np.asarray(1 - np.minimum(_share(others, trained), 1).mean(0))


def dependence_estimate(trained: Change, others: Mapping[str, Change], *, allow_missing: bool = False) -> Estimate:
    """The dependence index of mean scores; each draw resamples people, with all their forms, in both models.

    Args:
        trained: scores of the direct form.
        others: form -> scores.
        allow_missing: as everywhere.

    Raises:
        MetricError: as `Change.joint`.
    """
    named = {"direct": trained, **others}
    kept = {
        form: change.joint(name=f"forms.dependence_index ({form})", allow_missing=allow_missing)
        for form, change in named.items()
    }
    value = float(_index([drop(*(column.values.mean() for column in change[:2])) for change in kept.values()]))
    counts = [len(change.groups) for change in kept.values()]
    total = sum(len(change.groups) for change in named.values())
    return Estimate(value, _index_draws(list(kept.values()), counts), sum(counts), total)


def _index_draws(changes: list[Change], counts: list[int]) -> Array | None:
    if any(change.after.weights is None for change in changes):
        return None
    # One draw of people for every form: a person's forms stand or fall together.
    weights = draw_weights([group for change in changes for group in change.groups], label="forms")
    if weights is None:
        return None
    parts = np.split(weights, np.cumsum(counts)[:-1], axis=1)
    drops = [
        drop(*(mean_draws(column.values, part) for column in change[:2]))
        for change, part in zip(changes, parts, strict=True)
    ]
    return _index(drops)


def _index(drops: list[Array]) -> Array:
    return dependence_index(drops[0], np.stack(drops[1:]))


def _share(part: Array, whole: Array) -> Array:
    """`part / whole`; NaN where the whole is 0."""
    part, whole = np.broadcast_arrays(part, whole)
    return np.asarray(np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0))
