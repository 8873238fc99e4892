"""What the profiles of the TOFU suite share: splits as views, and a sheet of estimates that says what is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from expunge.evals.suite import Tables
from expunge.metrics.estimate import (
    Column,
    Estimate,
    auc_estimate,
    fpr95_estimate,
    harmonic_estimate,
    mean_estimate,
    valid_column,
)
from expunge.metrics.forget_quality import KSTest, ks_test
from expunge.metrics.pairing import check_same_rows
from expunge.metrics.ragged import Array
from expunge.metrics.score import Direction, Score
from expunge.metrics.view import SplitView, split_names, view_split

Views = Mapping[str, SplitView]
PerRow = Callable[[SplitView], Array]
Need = Literal["paraphrase", "perturbed", "generations", "moments"]

NO_REFERENCE = "no --reference given"


class Rule(NamedTuple):
    """How a metric is judged."""

    direction: Direction
    ideal: float | None = None
    """What perfect unlearning scores whatever the model; None: the retrained run's value, where one is given."""


def views_of(tables: Tables, *, first: int | None = None) -> dict[str, SplitView]:
    """Every split of the tables; with `first`, its first rows only."""
    return {name: view_split(*tables, name, first=first) for name in split_names(tables.trace)}


@dataclass
class Sheet:
    """Estimates of one model under one profile; a metric that a split cannot give goes to `skipped` with its reason."""

    views: Views
    allow_missing: bool
    intervals: bool = True
    estimates: dict[str, Estimate] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Score] = field(default_factory=dict)
    """Scores without draws: p-values."""

    def mean(self, name: str, split: str, per_row: PerRow, needs: Sequence[Need] = ()) -> None:
        """The mean of a per-row metric; a split that is not part of the suite leaves no trace."""
        view = self.views.get(split)
        if view is None:
            return
        if reason := self._lacking(name, (split,), needs):
            self.skipped[name] = reason
            return
        self.estimates[name] = mean_estimate(self._column(view, per_row), name=name, allow_missing=self.allow_missing)

    def auc(self, name: str, positive: str, negative: str, per_row: PerRow, needs: Sequence[Need] = ()) -> None:
        """P(a `positive` row scores above a `negative` one)."""
        if reason := self._lacking(name, (positive, negative), needs):
            self.skipped[name] = reason
            return
        one, two = (self._column(self.views[split], per_row) for split in (positive, negative))
        self.estimates[name] = auc_estimate(one, two, name=name, allow_missing=self.allow_missing)

    def fpr95(self, name: str, accepted: str, rejected: str, per_row: PerRow) -> None:
        """Share of `rejected` rows above the threshold that accepts 95 % of `accepted` rows."""
        if reason := self._lacking(name, (accepted, rejected), ()):
            self.skipped[name] = reason
            return
        one, two = (self._column(self.views[split], per_row) for split in (accepted, rejected))
        self.estimates[name] = fpr95_estimate(one, two, name=name, allow_missing=self.allow_missing)

    def harmonic(self, name: str, parts: Mapping[str, Sequence[str]]) -> None:
        """The harmonic mean of metrics of several splits (split -> metric names)."""
        if absent := [part for split in parts.values() for part in split if part not in self.estimates]:
            self.skipped[name] = f"needs {', '.join(absent)}, not measured here"
            return
        found = {split: [self.estimates[part] for part in names] for split, names in parts.items()}
        self.estimates[name] = harmonic_estimate(found)

    def forget_quality(self, reference: Views | None, ratio: PerRow, *, pvalue: Sequence[str], statistic: str) -> None:
        """The KS test of the truth ratios of the forget rows against those of the retrained model."""
        names = (*pvalue, statistic)
        needs: tuple[Need, ...] = ("paraphrase", "perturbed")
        reason = NO_REFERENCE if reference is None else self._lacking(statistic, ("forget",), needs)
        if reason or reference is None:
            self.skipped.update(dict.fromkeys(names, reason or NO_REFERENCE))
            return
        test, n = self._ks(reference["forget"], ratio, name=pvalue[0])
        total = len(self.views["forget"])
        for name in pvalue:
            self.extra[name] = Score(test.pvalue, None, None, n, total, 1.0, "higher")
        self.extra[statistic] = Score(test.statistic, None, None, n, total, 0.0, "lower")

    def _ks(self, reference: SplitView, ratio: PerRow, *, name: str) -> tuple[KSTest, int]:
        ours = self._valid(self.views["forget"], ratio, name)
        theirs = self._valid(reference, ratio, f"{name} of the reference run")
        return ks_test(ours, theirs), len(ours)

    def _valid(self, view: SplitView, ratio: PerRow, name: str) -> Array:
        values = ratio(view)
        present = ~np.isnan(values)
        # A ratio may overflow to infinity, which still has a rank: only the missing rows are checked here.
        column = Column(present.astype(float), present, None, view.row.tolist())
        valid_column(column, name=name, allow_missing=self.allow_missing)
        return np.asarray(values[present])

    def _column(self, view: SplitView, per_row: PerRow) -> Column:
        return view.column(per_row(view), intervals=self.intervals)

    def _lacking(self, name: str, splits: Sequence[str], needs: Sequence[Need]) -> str | None:
        for split in splits:
            if split not in self.views:
                return f"no {split} rows in this evaluation"
            for need in needs:
                if reason := _missing(self.views[split], need):
                    return reason
        return None


def _missing(view: SplitView, need: Need) -> str | None:
    if need == "paraphrase" and view.paraphrase is None:
        return f"no paraphrased answers in {view.split}"
    if need == "perturbed" and len(view.perturbed.values) == 0:
        return f"no perturbed answers in {view.split}"
    if need == "generations" and view.generations is None:
        return f"no generated answers in {view.split}"
    if need == "moments" and not view.stores("mu"):
        return f"mu and var were not stored for {view.split}"
    return None


def reference_views(views: Views, reference: Tables | None, *, first: int | None = None) -> dict[str, SplitView] | None:
    """The retrained run's splits, after checking that they hold the same rows.

    Raises:
        MetricError: they do not, or it has no forget rows.
    """
    if reference is None:
        return None
    theirs = views_of(reference, first=first)
    check_same_rows(views, theirs, needed="forget")
    return theirs
