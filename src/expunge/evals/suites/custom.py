"""The custom suite: rows of your own in splits of any name, measured by whatever their columns allow.

Definitions are TOFU's canonical ones. Measuring reads tables only.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from expunge.data.example import Example
from expunge.data.own_rows import OPTIONS, load_own_rows
from expunge.errors import UsageError
from expunge.evals.suite import Measured, Profile, Scoring, Split, Suite, SuiteData, Tables
from expunge.evals.suites import fluency_sheet, guard_sheet, reference_attack, tofu_canonical
from expunge.evals.suites.checks import require_canonical, require_own_rows
from expunge.evals.suites.fluency_sheet import FLUENT, fill_fluency
from expunge.evals.suites.leak_sheet import fill_leak, fill_sampled
from expunge.evals.suites.tofu_canonical import ANSWERED, MEMBERSHIP, PER_ROW
from expunge.evals.suites.tofu_sheet import PerRow, Rule, Sheet, Views, reference_views, scored, views_of
from expunge.metrics.multiple_choice import OPTION, accuracy, answer_probability, choices_of, confidence
from expunge.metrics.view import SplitView

FORGET, RETAIN, HOLDOUT = "forget", "retain", "holdout"
"""Names that mean something: `forget` is attacked, against `holdout`, and told from `retain` by its energy."""

CHOICES: dict[str, PerRow] = {
    "accuracy": lambda view: accuracy(choices_of(view)),
    "answer_probability": lambda view: answer_probability(choices_of(view)),
    "confidence": lambda view: confidence(choices_of(view)),
}
"""Reported of a split of multiple-choice questions, in place of everything else."""
_ENERGIES = ("energy.auroc", "energy.fpr95")


def custom(data: SuiteData) -> Suite:
    """Declare the suite.

    Args:
        data: `source` is a file or a folder, see `expunge.data.own_rows`; `limit` holds for each split.

    Raises:
        UsageError: no source, or rows that the recipe names besides.
        DataError: rows that cannot be used; they are named.
    """
    require_own_rows(data, "the custom suite takes its rows from a source")
    if data.source is None:
        raise UsageError(
            "the custom suite measures rows of your own, and none are named",
            hint="--source FILE or FOLDER, or eval.source in the recipe",
        )
    splits = tuple(_split(name, rows[: data.limit]) for name, rows in load_own_rows(data.source).items())
    options = {"rows": Path(data.source).name, "limit": str(data.limit or "none")}
    return Suite("custom", splits, measure, options=options, profiles=("canonical",))


def _split(name: str, examples: tuple[Example, ...]) -> Split:
    extras = {column for example in examples for column in example.extra}
    if OPTIONS in extras:
        return Split(name, examples, ("options",))
    paraphrased = ("paraphrase",) if "paraphrased_answer" in extras else ()
    perturbed = ("perturbed",) if "perturbed_answer" in extras else ()
    # A raw text has no prompt that an answer could be generated from.
    prompted = all(example.turns for example in examples)
    stats = name in (FORGET, HOLDOUT)
    variants, scoring = ("answer", *paraphrased, *perturbed), FLUENT if prompted else Scoring()
    return Split(name, examples, variants, generate=prompted, stats=stats, scoring=scoring)


def rule(name: str) -> Rule:
    """How a metric is judged."""
    split, _, metric = name.partition(".")
    if split in ("membership", "energy", "guard") or not metric:
        return tofu_canonical.rule(name)
    if metric in fluency_sheet.RULES:
        return fluency_sheet.RULES[metric]
    if metric in ("truth_ratio", "confidence") or (split == HOLDOUT and metric not in CHOICES):
        return Rule("match")
    return Rule("lower" if split.startswith(FORGET) else "higher")


def measure(
    tables: Tables,
    *,
    reference: Tables | None = None,
    profile: Profile = "canonical",
    allow_missing: bool = False,
) -> Measured:
    """Every metric that the rows allow, with 95 % intervals bootstrapped over groups, or rows where they have none.

    Args:
        tables: the passes of the model that is measured.
        reference: those of the retrained model, over the same rows; gives forget quality, and every metric's ideal.
        profile: `canonical`.
        allow_missing: accept metrics of which less than 99 % of the rows can be measured.

    Returns:
        Scores by name, why others are absent, and the rows that each mean was taken over.

    Raises:
        MetricError: rows are missing, doubled or not numbers, or the reference was measured on other rows.
        UsageError: another profile.
    """
    require_canonical(profile, suite="custom")
    views = views_of(tables)
    theirs = reference_views(views, reference, needed=next(iter(views)))
    return scored(views, theirs, fill=fill, rule=rule, allow_missing=allow_missing)


def fill(sheet: Sheet, reference: Views | None) -> None:
    """Compute every metric of one model."""
    for split, view in sheet.views.items():
        if _chosen(view):
            for metric, of_choices in CHOICES.items():
                sheet.mean(f"{split}.{metric}", split, of_choices)
        else:
            for metric in ANSWERED:
                per_row, needs = PER_ROW[metric]
                sheet.mean(f"{split}.{metric}", split, per_row, needs)
    _fill_membership(sheet, reference)
    if FORGET in sheet.views and not _chosen(sheet.views[FORGET]):
        fill_leak(sheet)
    else:
        fill_sampled(sheet)
    fill_fluency(sheet, [name for name, view in sheet.views.items() if not _chosen(view)])
    _fill_energy(sheet)
    if FORGET in sheet.views:
        sheet.forget_quality(
            reference,
            tofu_canonical.ratio,
            pvalue=("forget_quality",),
            statistic="forget_quality_statistic",
        )


def _chosen(view: SplitView) -> bool:
    """Whether a split holds multiple-choice questions."""
    return any(variant.startswith(OPTION) for variant in view.trace["variant"].to_pylist())


def _fill_membership(sheet: Sheet, reference: Views | None) -> None:
    letters = [split for split in (FORGET, HOLDOUT) if split in sheet.views and _chosen(sheet.views[split])]
    if letters:
        reason = f"{letters[0]} holds multiple-choice questions, whose answers are letters"
        sheet.skipped |= dict.fromkeys((*MEMBERSHIP, reference_attack.NAME), reason)
        return
    for name, (per_row, needs) in MEMBERSHIP.items():
        sheet.auc(name, FORGET, HOLDOUT, per_row, needs)
    reference_attack.fill_reference_attack(sheet, reference)


def _fill_energy(sheet: Sheet) -> None:
    asked = {name: view for name, view in sheet.views.items() if view.generations is not None or _chosen(view)}
    if texts := [split for split in (FORGET, RETAIN) if split in sheet.views and split not in asked]:
        sheet.skipped |= dict.fromkeys(_ENERGIES, f"{texts[0]} holds texts, which have no prompt")
    else:
        guard_sheet.fill_guard(replace(sheet, views=asked))
