"""What a world adds to the TOFU metrics: every form of a question, neighbours, and what changed since the start."""

from __future__ import annotations

from expunge.evals.suite import NO_START
from expunge.evals.suites.tofu_sheet import PerRow, Rule, Sheet, Views
from expunge.metrics.memorization import extraction_strength
from expunge.metrics.probability import probability
from expunge.metrics.ragged import Array
from expunge.metrics.relative import Change, dependence_estimate, drop, ratio_estimate
from expunge.metrics.view import SplitView

FORMS = ("paraphrased", "cloze", "inverted", "multi_hop", "multiple_choice")
"""How a fact is asked for, beside the direct form, which is `forget` and `retain` themselves."""

MORE_SPLITS = ("holdout", "neighbours", *(f"{side}_{form}" for side in ("forget", "retain") for form in FORMS))
"""Splits of the suite that TOFU's metrics do not reach."""

LEAKAGE, RETENTION, DEPENDENCE = "multi_hop.leakage", "neighbours.retention", "forms.dependence_index"

RULES: dict[str, Rule] = {
    LEAKAGE: Rule("lower"),
    RETENTION: Rule("higher", 1.0),
    DEPENDENCE: Rule("lower"),
}

LEAST = 0.05
"""A score of the starting model, or a drop from it, that is too small to divide by."""


def strength(view: SplitView) -> Array:
    """(R,) extraction strength of the answers, without the end token."""
    return extraction_strength(view.answers("hit", "no_eos"))


def likelihood(view: SplitView) -> Array:
    """(R,) probability per token of the answers."""
    return probability(view.loss)


def fill_forms(sheet: Sheet, start: Views | None) -> None:
    """Extraction strength and probability of every further split, then what is relative to the starting model.

    Args:
        sheet: receives estimates and reasons.
        start: the starting model's splits, over the same rows; None: there are none.

    Raises:
        MetricError: rows that cannot be measured.
    """
    for split in MORE_SPLITS:
        sheet.mean(f"{split}.extraction_strength", split, strength)
        sheet.mean(f"{split}.probability", split, likelihood)
    if start is None:
        sheet.skipped.update(dict.fromkeys(RULES, NO_START))
        return
    _ratio(sheet, start, LEAKAGE, "forget_multi_hop")
    _ratio(sheet, start, RETENTION, "neighbours")
    _dependence(sheet, start)


def _ratio(sheet: Sheet, start: Views, name: str, split: str) -> None:
    if reason := _absent(sheet, start, split):
        sheet.skipped[name] = reason
        return
    change = _change(sheet, start, split, strength)
    known = change.before.values[change.before.valid].mean() if change.before.valid.any() else 0.0
    if known < LEAST:
        sheet.skipped[name] = f"the starting model's {split}.extraction_strength is {known:.3f}, below {LEAST}"
        return
    sheet.estimates[name] = ratio_estimate(change, name=name, allow_missing=sheet.allow_missing)


def _dependence(sheet: Sheet, start: Views) -> None:
    splits = ("forget", *(f"forget_{form}" for form in FORMS))
    if reason := _absent(sheet, start, *splits):
        sheet.skipped[DEPENDENCE] = reason
        return
    changes = {split: _change(sheet, start, split, likelihood) for split in splits}
    for split, change in changes.items():
        if not change.before.values.any():
            sheet.skipped[DEPENDENCE] = f"the starting model gives {split} answers no probability"
            return
    direct = changes.pop("forget")
    kept = direct.joint(name=DEPENDENCE, allow_missing=sheet.allow_missing)
    forgotten = float(drop(kept.after.values.mean(), kept.before.values.mean()))
    if forgotten < LEAST:
        sheet.skipped[DEPENDENCE] = (
            f"nothing was forgotten: forget.probability fell by {forgotten:.3f} of the starting model's, below {LEAST}"
        )
        return
    sheet.estimates[DEPENDENCE] = dependence_estimate(direct, changes, allow_missing=sheet.allow_missing)


def _change(sheet: Sheet, start: Views, split: str, per_row: PerRow) -> Change:
    view = sheet.views[split]
    return Change(sheet.column(view, per_row), sheet.column(start[split], per_row), view.groups)


def _absent(sheet: Sheet, start: Views, *splits: str) -> str | None:
    if reason := sheet.lacking(splits):
        return reason
    return next((f"the starting run has no {split} rows" for split in splits if split not in start), None)
