"""The LUME suite, scored as SemEval-2025 task 4 was (arXiv 2502.15097, 2504.02883).

Three tasks, each asked in two ways on both sides, texts for a membership attack, and MMLU. Measuring reads tables only.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from expunge.data.benchmarks import lume as files
from expunge.evals.suite import Measured, Profile, Scoring, Split, Suite, SuiteData, Tables
from expunge.evals.suites import reference_attack
from expunge.evals.suites.checks import require_canonical, require_own_rows
from expunge.evals.suites.leak_sheet import fill_sampled
from expunge.evals.suites.mmlu import mmlu
from expunge.evals.suites.tofu_canonical import MEMBERSHIP, PER_ROW
from expunge.evals.suites.tofu_sheet import PerRow, Rule, Sheet, Views, reference_views, scored, views_of
from expunge.metrics.estimate import Column, mean_estimate, pooled_estimate
from expunge.metrics.lume import Kind, lume_score, membership_score, task_aggregate
from expunge.metrics.multiple_choice import accuracy, choices_of

TEMPLATE = "harness"
"""Text as it is: an answer goes on with a blank, and no end token follows it."""
ANSWER_TOKENS = 256
FORGET_TEXTS, HOLDOUT = "forget_texts", "holdout"
MMLU = "mmlu_"
"""What splits of MMLU's subjects are called before their subject."""
AGGREGATE, MEMBERSHIP_SCORE, UTILITY, FINAL = "task_aggregate", "membership_score", "mmlu.accuracy", "lume_score"
ATTACK = "membership.loss_auc"
EXACT_MATCH = "exact_match"
_SCORING: dict[Kind, Scoring] = {"regurgitation": Scoring(), "knowledge": Scoring(scores=(EXACT_MATCH,))}

OWN: dict[Kind, PerRow] = {
    "regurgitation": lambda view: view.generated("rougeL_recall"),
    "knowledge": lambda view: view.answer_score(EXACT_MATCH),
}
"""How the greedy answers of a split are scored, which its name says."""
TRACED = ("probability", "extraction_strength", "exact_memorization")
"""What the trace of answers and continuations gives besides."""
_PARTS: dict[str, tuple[str, str, Kind]] = {
    files.split_name(side, task, kind): (side, task, kind)
    for side in files.SIDES
    for task in files.TASKS
    for kind in files.KINDS
}

_RULES = {
    AGGREGATE: Rule("higher"),
    MEMBERSHIP_SCORE: Rule("higher", 1.0),
    UTILITY: Rule("higher"),
    FINAL: Rule("higher"),
}


def lume(data: SuiteData) -> Suite:
    """Declare the suite.

    Args:
        data: `source` is a folder of LUME's files or a Hub id, the data set of the task unless said; what it lacks is
            not part of the suite. `limit` holds for each split, `num_fewshot` for MMLU's questions.

    Raises:
        UsageError: rows of another origin are named.
        DataError: a source that is not there or holds no row of LUME, or rows that cannot be used.
    """
    require_own_rows(data, "the lume suite takes its rows from LUME")
    source, limit = data.source or files.HUB, data.limit
    found = files.load_lume(source)
    splits = [
        Split(name, rows[:limit], generate=True, scoring=_SCORING[_PARTS[name][2]]) for name, rows in found.rows.items()
    ]
    for name, texts in ((FORGET_TEXTS, found.members), (HOLDOUT, found.others)):
        if texts:
            splits.append(Split(name, texts[:limit], stats=True))
    if found.mmlu is not None:
        subjects = mmlu(data._replace(source=str(found.mmlu))).splits
        splits += [replace(split, name=f"{MMLU}{split.name}") for split in subjects]
    options = {"rows": Path(source).name, "num_fewshot": str(data.num_fewshot), "limit": str(limit or "none")}
    return Suite(
        "lume",
        tuple(splits),
        measure,
        max_new_tokens=ANSWER_TOKENS,
        template=TEMPLATE,
        options=options,
        profiles=("canonical",),
        membership=(FORGET_TEXTS, HOLDOUT),
    )


def rule(name: str) -> Rule:
    """How a metric is judged."""
    if name in _RULES:
        return _RULES[name]
    if name.startswith("membership."):
        return Rule("match")
    return Rule("lower" if name.startswith("forget_") else "higher")


def measure(
    tables: Tables,
    *,
    reference: Tables | None = None,
    profile: Profile = "canonical",
    allow_missing: bool = False,
) -> Measured:
    """Every metric of the suite, with 95 % intervals bootstrapped over documents.

    Args:
        tables: the passes of the model that is measured.
        reference: those of the retrained model, over the same rows; its values are then the ideals.
        profile: `canonical`.
        allow_missing: accept metrics of which less than 99 % of the rows can be measured.

    Returns:
        Scores by name, why others are absent, and the rows that each mean was taken over.

    Raises:
        MetricError: rows are missing, doubled or not numbers, or the reference was measured on other rows.
        UsageError: another profile.
    """
    require_canonical(profile, suite="lume")
    views = views_of(tables)
    theirs = reference_views(views, reference, needed=next(iter(views)))
    return scored(views, theirs, fill=fill, rule=rule, allow_missing=allow_missing)


def fill(sheet: Sheet, reference: Views | None) -> None:
    """Compute every metric of one model."""
    for split, (_, _, kind) in _PARTS.items():
        why = _lacking(split)
        sheet.mean(f"{split}.{kind}", split, OWN[kind], ("generations",), absent=why)
        for name in TRACED:
            sheet.mean(f"{split}.{name}", split, PER_ROW[name][0], absent=why)
    _fill_aggregate(sheet)
    _fill_membership(sheet)
    _fill_reference(sheet, reference)
    fill_sampled(sheet)
    _fill_utility(sheet)
    if absent := [name for name in (AGGREGATE, MEMBERSHIP_SCORE, UTILITY) if name not in sheet.estimates]:
        sheet.skipped[FINAL] = f"needs {', '.join(absent)}, not measured here"
        return
    sheet.estimates[FINAL] = lume_score(
        tasks=sheet.estimates[AGGREGATE],
        membership=sheet.estimates[MEMBERSHIP_SCORE],
        utility=sheet.estimates[UTILITY],
    )


def _lacking(split: str) -> str:
    side, task, kind = _PARTS[split]
    return f"no {split} rows in this evaluation ({task.capitalize()} of {side}, ids in {files.KINDS[kind]})"


def _fill_aggregate(sheet: Sheet) -> None:
    if absent := [split for split in _PARTS if split not in sheet.views]:
        sheet.skipped[AGGREGATE] = f"it is over twelve parts, and this evaluation has no {', '.join(absent)} rows"
        return
    columns: dict[str, dict[str, Column]] = {side: {} for side in files.SIDES}
    for split, (side, task, kind) in _PARTS.items():
        columns[side][f"{task} {kind}"] = sheet.column(sheet.views[split], OWN[kind])
    sheet.estimates[AGGREGATE] = task_aggregate(columns["forget"], columns["retain"], allow_missing=sheet.allow_missing)


def _fill_reference(sheet: Sheet, reference: Views | None) -> None:
    if reason := _without_texts(sheet):
        sheet.skipped[reference_attack.NAME] = reason
    else:
        reference_attack.fill_reference_attack(sheet, reference, members=FORGET_TEXTS, others=HOLDOUT)


def _without_texts(sheet: Sheet) -> str:
    """Why no membership attack can be measured; empty where one can."""
    absent = [split for split in (FORGET_TEXTS, HOLDOUT) if split not in sheet.views]
    return f"no {absent[0]} rows in this evaluation (LUME's member and nonmember texts)" if absent else ""


def _fill_membership(sheet: Sheet) -> None:
    reason = _without_texts(sheet)
    for name, (per_row, needs) in MEMBERSHIP.items():
        if reason:
            sheet.skipped[name] = reason
        else:
            sheet.auc(name, FORGET_TEXTS, HOLDOUT, per_row, needs)
    if ATTACK in sheet.estimates:
        sheet.estimates[MEMBERSHIP_SCORE] = membership_score(sheet.estimates[ATTACK])
    else:
        sheet.skipped[MEMBERSHIP_SCORE] = sheet.skipped[ATTACK]


def _fill_utility(sheet: Sheet) -> None:
    subjects = [name for name in sheet.views if name.startswith(MMLU)]
    if not subjects:
        sheet.skipped[UTILITY] = "no MMLU questions in this evaluation: put a copy of them into SOURCE/mmlu"
        return
    parts = []
    for name in subjects:
        column = sheet.column(sheet.views[name], lambda view: accuracy(choices_of(view)))
        parts.append(mean_estimate(column, name=f"{name}.accuracy", allow_missing=sheet.allow_missing))
    sheet.estimates[UTILITY] = pooled_estimate(parts)
