"""The `tofu` profile: the benchmark's own aggregation and names, over the first 300 rows of each split."""

from __future__ import annotations

from expunge.evals.suites.tofu_canonical import ratio
from expunge.evals.suites.tofu_sheet import Need, Rule, Sheet, Views
from expunge.metrics.options import option_probability
from expunge.metrics.probability import probability
from expunge.metrics.ragged import Array
from expunge.metrics.truth_ratio import closer_to_1, true_better
from expunge.metrics.view import SplitView

FIRST = 300
"""Rows of each split that the published evaluation uses."""

LABELS = {"real_authors": "Real Authors", "world_facts": "Real World", "retain": "Retain", "forget": "Forget"}
UTILITY = {
    split: tuple(f"{metric} {LABELS[split]}" for metric in ("ROUGE", "Prob.", "Truth Ratio"))
    for split in ("real_authors", "world_facts", "retain")
}
P_VALUES = ("Forget Quality", "KS Test PVal Forget")
STATISTIC = "KS Test Forget"


def rule(name: str) -> Rule:
    """How a metric is judged."""
    if name in P_VALUES:
        return Rule("higher", 1.0)
    if name == STATISTIC:
        return Rule("lower", 0.0)
    if name == "Truth Ratio Forget":
        return Rule("match")
    return Rule("lower" if name.endswith("Forget") else "higher")


def fill(sheet: Sheet, reference: Views | None) -> None:
    """Compute every number of the published table for one model."""
    for split, label in LABELS.items():
        options = split in ("real_authors", "world_facts")
        needs: tuple[Need, ...] = ("perturbed",) if options else ("paraphrase", "perturbed")
        sheet.mean(f"ROUGE {label}", split, lambda view: view.generated("rougeL_recall"), ("generations",))
        sheet.mean(f"Prob. {label}", split, _normalised if options else _plain, ("perturbed",) if options else ())
        sheet.mean(f"Truth Ratio {label}", split, _closeness if split == "forget" else _preference, needs)
    sheet.harmonic("Model Utility", UTILITY)
    sheet.forget_quality(reference, ratio, pvalue=P_VALUES, statistic=STATISTIC)


def _plain(view: SplitView) -> Array:
    return probability(view.loss)


def _normalised(view: SplitView) -> Array:
    return option_probability(view.loss, view.wrong_losses)


def _closeness(view: SplitView) -> Array:
    return closer_to_1(ratio(view))


def _preference(view: SplitView) -> Array:
    return true_better(ratio(view))
