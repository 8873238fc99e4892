"""What the profiles of the TOFU suite share: splits as views, and a sheet of estimates that says what is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from expunge.errors import MetricError
from expunge.evals.suite import Measured, RowValues, Tables
from expunge.metrics.auc import placements
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
Need = Literal["paraphrase", "perturbed", "generations", "moments", "gradients"]

NO_REFERENCE = (
    "no --reference given: `expunge eval RETRAINED` measures a model that was trained without the forget rows; then"
    " name its run"
)
NO_GRADIENTS = "no gradient norms were measured: `expunge eval RUN --gradnorm` measures them"
CHANCE = 0.5
_AGAINST_THE_REFERENCE = ("membership.reference_auc", "mia_reference")
"""Attacks by the retrained model, on which it could only score chance itself."""


class Rule(NamedTuple):
    """How a metric is judged."""

    direction: Direction
    ideal: float | None = None
    """What perfect unlearning scores whatever the model; None: the retrained run's value, where one is given."""


RuleOf = Callable[[str], Rule]
"""Metric name -> how it is judged."""


def views_of(tables: Tables, *, first: int | None = None) -> dict[str, SplitView]:
    """Every split of the tables; with `first`, its first rows only."""
    return {
        name: view_split(
            tables.trace,
            tables.generations,
            name,
            first=first,
            samples=tables.samples,
            gradients=tables.gradients,
            gibberish=tables.gibberish,
            perplexity=tables.perplexity,
        )
        for name in split_names(tables.trace)
    }


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
    rows: dict[str, RowValues] = field(default_factory=dict)
    """What each mean was taken over, an AUC being the mean of the places of its first split's rows."""

    def mean(
        self, name: str, split: str, per_row: PerRow, needs: Sequence[Need] = (), *, absent: str | None = None
    ) -> None:
        """The mean of a per-row metric; a split that is not there is skipped as `absent` says, else without a trace."""
        view = self.views.get(split)
        if view is None:
            if absent is not None:
                self.skipped[name] = absent
            return
        if reason := self.lacking((split,), needs):
            self.skipped[name] = reason
            return
        column = self.column(view, per_row)
        self.estimates[name] = mean_estimate(column, name=name, allow_missing=self.allow_missing)
        self.rows[name] = RowValues(split, view.row, column.values, column.valid)

    def auc(self, name: str, positive: str, negative: str, per_row: PerRow, needs: Sequence[Need] = ()) -> None:
        """P(a `positive` row scores above a `negative` one)."""
        if reason := self.lacking((positive, negative), needs):
            self.skipped[name] = reason
            return
        one, two = (self.column(self.views[split], per_row) for split in (positive, negative))
        self.estimates[name] = auc_estimate(one, two, name=name, allow_missing=self.allow_missing)
        self.rows[name] = RowValues(positive, self.views[positive].row, placed(one, two), one.valid)

    def fpr95(self, name: str, accepted: str, rejected: str, per_row: PerRow) -> None:
        """Share of `rejected` rows above the threshold that accepts 95 % of `accepted` rows."""
        if reason := self.lacking((accepted, rejected)):
            self.skipped[name] = reason
            return
        one, two = (self.column(self.views[split], per_row) for split in (accepted, rejected))
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
        # A reference gives nothing where our own rows lack what it would be compared by.
        lacking = self.lacking(("forget",), ("paraphrase", "perturbed"))
        if lacking or reference is None:
            self.skipped.update(dict.fromkeys(names, lacking or NO_REFERENCE))
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

    def column(self, view: SplitView, per_row: PerRow) -> Column:
        """A per-row metric of a split with what is needed to summarise it."""
        return view.column(per_row(view), intervals=self.intervals)

    def lacking(self, splits: Sequence[str], needs: Sequence[Need] = ()) -> str | None:
        """Why a metric of these splits cannot be measured; None where it can."""
        if absent := [split for split in splits if split not in self.views]:
            return f"no {absent[0]} rows in this evaluation"
        for split in splits:
            for need in needs:
                if reason := _missing(self.views[split], need):
                    return reason
        return None


def placed(one: Column, two: Column) -> Array:
    """(n,) where each row of `one` stands among those of `two`, which an AUC is the mean of; NaN for an invalid row."""
    placed = np.full(len(one.values), np.nan)
    placed[one.valid] = placements(one.values[one.valid], two.values[two.valid])
    return placed


def _missing(view: SplitView, need: Need) -> str | None:
    if need == "paraphrase" and view.paraphrase is None:
        return f"no paraphrased answers in {view.split}"
    if need == "perturbed" and len(view.perturbed.values) == 0:
        return f"no perturbed answers in {view.split}"
    if need == "generations" and view.generations is None:
        return f"no generated answers in {view.split}"
    if need == "moments" and not view.stores("mu"):
        return f"mu and var were not stored for {view.split}"
    if need == "gradients" and view.gradients is None:
        return NO_GRADIENTS
    return None


def reference_views(
    views: Views,
    reference: Tables | None,
    *,
    first: int | None = None,
    who: str = "the reference run",
    needed: str = "forget",
) -> dict[str, SplitView] | None:
    """The splits of another model, after checking that they hold the same rows.

    Args:
        views: our splits.
        reference: its passes; None: there is no such model.
        first: only the first rows of each split.
        who: names it in errors.
        needed: the split without which nothing can be compared.

    Raises:
        MetricError: they do not, or it has no `needed` rows.
    """
    if reference is None:
        return None
    theirs = views_of(reference, first=first)
    check_same_rows(views, theirs, needed=needed, who=who)
    return theirs


Fill = Callable[[Sheet, Views | None], None]
"""Puts every metric of one model on its sheet; the second argument is the retrained model's splits."""


def scored(views: Views, reference: Views | None, *, fill: Fill, rule: RuleOf, allow_missing: bool) -> Measured:
    """Every metric as a score, its ideal being what the retrained model has unless a rule fixes it.

    Args:
        views: the measured model's splits.
        reference: the retrained model's.
        fill: computes the metrics of either.
        rule: direction and fixed ideal of each name.
        allow_missing: accept metrics of which less than 99 % of the rows can be measured.

    Raises:
        MetricError: as `fill`; the message says if the reference is at fault.
    """
    sheet = Sheet(views, allow_missing)
    fill(sheet, reference)
    ideals = {} if reference is None else _values(reference, fill, lenient=allow_missing)
    scores = {
        name: estimate.score(rule(name).direction, ideal=_ideal(name, rule(name), ideals))
        for name, estimate in sheet.estimates.items()
    }
    return Measured(scores | sheet.extra, sheet.skipped, sheet.rows)


def _values(views: Views, fill: Fill, *, lenient: bool) -> dict[str, float]:
    """What the retrained model scores on the same metrics."""
    sheet = Sheet(views, lenient, intervals=False)
    try:
        fill(sheet, None)
    except MetricError as error:
        raise MetricError(f"the reference run: {error.message}", hint=error.hint) from error
    return {name: estimate.value for name, estimate in sheet.estimates.items()}


def _ideal(name: str, rule: Rule, ideals: Mapping[str, float]) -> float | None:
    if rule.ideal is not None:
        return rule.ideal
    # Chance stands in for a retrained model, never for a number that one lacks.
    attack = name.startswith(("membership.", "mia_")) and not (ideals and name not in _AGAINST_THE_REFERENCE)
    return ideals.get(name, CHANCE if attack else None)
