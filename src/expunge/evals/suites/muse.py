"""The MUSE suite: verbatim and knowledge memorisation, utility and privacy leakage on news or books (arXiv 2407.06460).

Its other two ways, scalability and sustainability, compare several evaluated runs: `expunge.evals.folds`.
Measuring reads tables only, so it works on a machine without torch and without the rows themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from expunge.errors import UsageError
from expunge.evals.suite import Measured, Profile, Scoring, Split, Suite, SuiteData, Tables
from expunge.evals.suites import muse_openunlearning, reference_attack
from expunge.evals.suites.checks import require_own_rows
from expunge.evals.suites.leak_sheet import fill_leak
from expunge.evals.suites.muse_splits import (
    FORGET,
    FORGET_TEXTS,
    HOLDOUT,
    KNOWMEM,
    NO_RETRAINED,
    RETAIN,
    VERBATIM,
    lacking,
)
from expunge.evals.suites.tofu_canonical import MEMBERSHIP
from expunge.evals.suites.tofu_sheet import Fill, PerRow, Rule, Sheet, Views, reference_views, scored, views_of
from expunge.metrics.estimate import privleak_estimate
from expunge.metrics.memorization import exact_memorization, extraction_strength
from expunge.metrics.muse import KNOWMEM_STOPS
from expunge.metrics.probability import probability

QUESTION_TOKENS = 32
"""Tokens of an answer to a question."""
VERBATIM_TOKENS = 128
"""Tokens a forget text is continued by, and, with the BOS, those of its own continuation that are compared."""
ATTACK = "membership.min_k_auc"

SCORING: dict[Profile, dict[str, Scoring]] = {
    "canonical": {
        KNOWMEM: Scoring(stem=False, stop=KNOWMEM_STOPS),
        VERBATIM: Scoring(stem=False, reference_tokens=VERBATIM_TOKENS),
    },
    "openunlearning": {KNOWMEM: Scoring(stop=KNOWMEM_STOPS), VERBATIM: Scoring()},
}
"""Profile -> how answers to questions and continuations are scored."""


def muse(data: SuiteData) -> Suite:
    """Declare the suite.

    Args:
        data: `source` is a folder of MUSE's files or a Hub id, `muse-bench/MUSE-News` unless said; `limit` holds for
            each split. The rows are always the benchmark's. A folder may lack `verbmem` or `privleak`; what they would
            have measured is skipped.

    Raises:
        UsageError: rows of another origin are named, or the profile is not one of the suite's.
        DataError: a split is missing or unreadable.
    """
    from expunge.data.benchmarks import muse as files

    require_own_rows(data, "the muse suite takes its rows from MUSE")
    where, limit = data.source or files.HUB, data.limit
    scoring = SCORING[_known(data.profile)]
    asked, continued = scoring[KNOWMEM], scoring[VERBATIM]
    splits = [
        Split(name, rows, generate=True, max_new_tokens=QUESTION_TOKENS, scoring=asked)
        for name, rows in (
            (FORGET, files.questions(where, files.FORGET_QA, limit=limit)),
            (RETAIN, files.questions(where, files.RETAIN_QA, limit=limit)),
        )
    ]
    if files.has_subset(where, "verbmem"):
        rows = files.continuations(where, limit=limit)
        splits.append(Split(VERBATIM, rows, generate=True, max_new_tokens=VERBATIM_TOKENS, scoring=continued))
    if files.has_subset(where, "privleak"):
        for name, part in ((FORGET_TEXTS, files.FORGET_TEXTS), (HOLDOUT, files.HOLDOUT_TEXTS)):
            splits.append(Split(name, tuple(files.load_part(where, part)[:limit]), stats=True))
    options = {"rows": Path(where).name, "limit": str(limit or "none"), "scored_for": data.profile}
    return Suite(
        "muse",
        tuple(splits),
        measure,
        template="plain",
        options=options,
        profiles=tuple(SCORING),
        membership=(FORGET_TEXTS, HOLDOUT),
    )


class _Profile(NamedTuple):
    fill: Fill
    rule: Callable[[str], Rule]
    lenient: bool = False
    """Whether missing rows are left out without complaint, as in the original."""


def measure(
    tables: Tables,
    *,
    reference: Tables | None = None,
    profile: Profile = "canonical",
    allow_missing: bool = False,
) -> Measured:
    """Every metric of the suite on one model, with 95 % intervals bootstrapped over rows.

    Args:
        tables: the passes of the model that is measured.
        reference: those of the retrained model, over the same rows; gives PrivLeak, and every metric's ideal.
        profile: whose definitions and names.
        allow_missing: accept metrics of which less than 99 % of the rows can be measured.

    Returns:
        Scores by name, and why others are absent.

    Raises:
        MetricError: rows are missing, doubled or not numbers, the reference was measured on other rows, or the attack
            recognises every forget text in it, so that PrivLeak has nothing to divide by.
        UsageError: unknown profile.
    """
    chosen = _PROFILES[_known(profile)]
    views = views_of(tables)
    theirs = reference_views(views, reference)
    return scored(views, theirs, fill=chosen.fill, rule=chosen.rule, allow_missing=allow_missing or chosen.lenient)


_PER_ROW: dict[str, PerRow] = {
    "probability": lambda view: probability(view.loss),
    "extraction_strength": lambda view: extraction_strength(view.answers("hit", "no_eos")),
    "exact_memorization": lambda view: exact_memorization(view.answers("hit", "no_eos")),
}
"""What the trace of answers and continuations gives without another pass."""


def rule(name: str) -> Rule:
    """How a canonical metric is judged."""
    if name == "privleak":
        return Rule("match", 0.0)
    split = name.partition(".")[0]
    if split == "membership":
        return Rule("match")
    return Rule("lower" if split in (FORGET, VERBATIM) else "higher")


def fill(sheet: Sheet, reference: Views | None) -> None:
    """Compute every canonical metric of one model."""
    for split, own in ((FORGET, KNOWMEM), (RETAIN, KNOWMEM), (VERBATIM, "verbmem")):
        if reason := lacking(sheet, split):
            sheet.skipped |= {f"{split}.{metric}": reason for metric in (own, *_PER_ROW)}
            continue
        sheet.mean(f"{split}.{own}", split, lambda view: view.generated("rougeL_f1"), ("generations",))
        for metric, per_row in _PER_ROW.items():
            sheet.mean(f"{split}.{metric}", split, per_row)
    _fill_membership(sheet)
    _fill_reference(sheet, reference)
    _fill_privleak(sheet, reference)
    fill_leak(sheet)


def _fill_membership(sheet: Sheet) -> None:
    reason = lacking(sheet, FORGET_TEXTS) or lacking(sheet, HOLDOUT)
    for name, (per_row, needs) in MEMBERSHIP.items():
        if reason:
            sheet.skipped[name] = reason
        else:
            sheet.auc(name, FORGET_TEXTS, HOLDOUT, per_row, needs)


def _fill_reference(sheet: Sheet, reference: Views | None) -> None:
    if reason := lacking(sheet, FORGET_TEXTS) or lacking(sheet, HOLDOUT):
        sheet.skipped[reference_attack.NAME] = reason
    else:
        reference_attack.fill_reference_attack(sheet, reference, members=FORGET_TEXTS, others=HOLDOUT)


def _fill_privleak(sheet: Sheet, reference: Views | None) -> None:
    attack = sheet.estimates.get(ATTACK)
    if attack is None:
        sheet.skipped["privleak"] = sheet.skipped[ATTACK]
    elif reference is None:
        sheet.skipped["privleak"] = NO_RETRAINED
    else:
        theirs = Sheet(reference, sheet.allow_missing, intervals=False)
        _fill_membership(theirs)
        if ATTACK in theirs.estimates:
            sheet.estimates["privleak"] = privleak_estimate(attack, theirs.estimates[ATTACK].value)
        else:
            sheet.skipped["privleak"] = f"the reference run: {theirs.skipped[ATTACK]}"


_PROFILES: dict[Profile, _Profile] = {
    "canonical": _Profile(fill, rule),
    "openunlearning": _Profile(muse_openunlearning.fill, muse_openunlearning.rule, lenient=True),
}


def _known(profile: Profile) -> Profile:
    if profile not in SCORING:
        raise UsageError(f"the muse suite has no profile {profile!r}", hint=f"it has: {', '.join(SCORING)}")
    return profile
