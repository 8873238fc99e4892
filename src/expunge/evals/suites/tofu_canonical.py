"""The canonical profile of the TOFU suite: every definition as its paper has it, without constants added for safety."""

from __future__ import annotations

from expunge.evals.suites import fluency_sheet, guard_sheet, reference_attack
from expunge.evals.suites.fluency_sheet import fill_fluency
from expunge.evals.suites.leak_sheet import fill_leak
from expunge.evals.suites.tofu_sheet import Need, PerRow, Rule, Sheet, Views
from expunge.metrics.leak_names import listed_name
from expunge.metrics.membership import (
    gradnorm_score,
    loss_score,
    min_k_plus_plus_score,
    min_k_score,
    zlib_score,
)
from expunge.metrics.memorization import exact_memorization, extraction_strength
from expunge.metrics.options import option_probability
from expunge.metrics.probability import probability
from expunge.metrics.ragged import Array
from expunge.metrics.truth_ratio import closer_to_1, prob_mean, true_better, truth_ratio
from expunge.metrics.view import SplitView

MIN_K = 0.4

UTILITY = {
    "retain": ("retain.probability", "retain.rougeL_recall", "retain.truth_ratio_utility"),
    "real_authors": (
        "real_authors.probability_normalised",
        "real_authors.rougeL_recall",
        "real_authors.truth_ratio_utility",
    ),
    "world_facts": (
        "world_facts.probability_normalised",
        "world_facts.rougeL_recall",
        "world_facts.truth_ratio_utility",
    ),
}


def ratio(view: SplitView) -> Array:
    """(R,) geometric truth ratio."""
    return truth_ratio(view.right_loss, view.wrong_losses)


PER_ROW: dict[str, tuple[PerRow, tuple[Need, ...]]] = {
    "probability": (lambda view: probability(view.loss), ()),
    "probability_normalised": (lambda view: option_probability(view.loss, view.wrong_losses), ("perturbed",)),
    "rougeL_recall": (lambda view: view.generated("rougeL_recall"), ("generations",)),
    "rouge1_recall": (lambda view: view.generated("rouge1_recall"), ("generations",)),
    "truth_ratio": (lambda view: closer_to_1(ratio(view)), ("perturbed",)),
    "truth_ratio_prob_mean": (lambda view: prob_mean(view.right_loss, view.wrong_losses), ("perturbed",)),
    "truth_ratio_utility": (lambda view: true_better(ratio(view)), ("perturbed",)),
    "extraction_strength": (lambda view: extraction_strength(view.answers("hit", "no_eos")), ()),
    "exact_memorization": (lambda view: exact_memorization(view.answers("hit", "no_eos")), ()),
}
"""Metric -> its value of each row, and what a split must have for it."""

_EVERYWHERE = (
    "probability",
    "rougeL_recall",
    "rouge1_recall",
    "truth_ratio",
    "truth_ratio_prob_mean",
    "truth_ratio_utility",
)
ANSWERED = (*_EVERYWHERE, "extraction_strength", "exact_memorization")
"""Metrics of a split of questions that a model was trained on."""
_BY_SPLIT = {
    "forget": ANSWERED,
    "retain": ANSWERED,
    "real_authors": (*_EVERYWHERE, "probability_normalised"),
    "world_facts": (*_EVERYWHERE, "probability_normalised"),
}

MEMBERSHIP: dict[str, tuple[PerRow, tuple[Need, ...]]] = {
    "membership.loss_auc": (lambda view: loss_score(view.loss), ()),
    "membership.min_k_auc": (lambda view: min_k_score(view.answers("logp", "no_eos"), k=MIN_K), ()),
    "membership.min_k_plus_plus_auc": (
        lambda view: min_k_plus_plus_score(
            *(view.answers(column, "no_eos") for column in ("logp", "mu", "var")), k=MIN_K
        ),
        ("moments",),
    ),
    "membership.zlib_auc": (lambda view: zlib_score(view.loss, view.zlib_bytes()), ()),
    "membership.gradnorm_auc": (lambda view: gradnorm_score(view.gradient("norm")), ("gradients",)),
}

_RULES = {
    "model_utility": Rule("higher"),
    "retain_utility": Rule("higher"),
    "forget_quality": Rule("higher", 1.0),
    "forget_quality_statistic": Rule("lower", 0.0),
    **guard_sheet.RULES,
}


def rule(name: str) -> Rule:
    """How a canonical metric is judged."""
    if (listed := listed_name(name)) in _RULES:
        return _RULES[listed]
    split, _, metric = name.partition(".")
    if metric in fluency_sheet.RULES:
        return fluency_sheet.RULES[metric]
    if split == "membership" or metric == "truth_ratio":
        return Rule("match")
    return Rule("lower" if split == "forget" else "higher")


def fill(sheet: Sheet, reference: Views | None) -> None:
    """Compute every canonical metric of one model."""
    for split, metrics in _BY_SPLIT.items():
        for metric in metrics:
            per_row, needs = PER_ROW[metric]
            paired: tuple[Need, ...] = ("paraphrase",) if _paired(split, metric) else ()
            sheet.mean(f"{split}.{metric}", split, per_row, (*needs, *paired))
    for name, (per_row, needs) in MEMBERSHIP.items():
        sheet.auc(name, "forget", "holdout", per_row, needs)
    reference_attack.fill_reference_attack(sheet, reference)
    fill_leak(sheet)
    fill_fluency(sheet)
    guard_sheet.fill_guard(sheet)
    sheet.harmonic("retain_utility", {"retain": UTILITY["retain"]})
    sheet.harmonic("model_utility", UTILITY)
    sheet.forget_quality(reference, ratio, pvalue=("forget_quality",), statistic="forget_quality_statistic")


def _paired(split: str, metric: str) -> bool:
    """Whether the right answer of a truth ratio is the paraphrase: where a benchmark has none, it is the answer."""
    return metric.startswith("truth_ratio") and split in ("forget", "retain")
