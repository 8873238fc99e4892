"""The UnlearnPII suite: whether personal data of invented people still comes out (Parii et al., NLLP 2025).

TOFU's metrics of its questions and paraphrases, and the share of personal data that answers give away, asked directly,
in other words, and the other way round. Measuring reads tables only.
"""

from __future__ import annotations

from functools import partial

from expunge.errors import UsageError
from expunge.evals.suite import Measured, Profile, Scoring, Split, Suite, SuiteData, Tables
from expunge.evals.suites import tofu_canonical
from expunge.evals.suites.checks import require_canonical, require_own_rows
from expunge.evals.suites.tofu_sheet import PerRow, Rule, Sheet, Views, reference_views, scored, views_of
from expunge.metrics.memorization import extraction_strength
from expunge.metrics.probability import probability
from expunge.metrics.view import SplitView

MAX_NEW_TOKENS = 200
DIRECT = ("forget", "retain")
OTHER_FORMS = ("forget_paraphrased", "forget_inverted")
SPLITS = (*DIRECT, *OTHER_FORMS)
LEAKAGE = "pii_leakage"
NO_UTILITY = "UnlearnPII has no real authors and no world facts; see retain_utility"
_SCORING = Scoring(scores=(LEAKAGE,))
_PER_ROW: dict[str, PerRow] = {
    "probability": lambda view: probability(view.loss),
    "rougeL_recall": lambda view: view.generated("rougeL_recall"),
    "extraction_strength": lambda view: extraction_strength(view.answers("hit", "no_eos")),
}
"""What is measured of the other forms of a question."""


def unlearn_pii(data: SuiteData) -> Suite:
    """Declare the suite.

    Args:
        data: `source` is a folder of UnlearnPII's files, or a Hub id whose splits are called like them; `#forget1`
            behind it says which forget rows, where there are several. `limit` holds for the rows of each file, of
            which paraphrases give five each.

    Raises:
        UsageError: no source, rows of another origin, or a choice between several files is left open.
        DataError: files are missing, or rows cannot be used; they are named.
    """
    from expunge.data.benchmarks import unlearn_pii as files
    from expunge.data.benchmarks.place import find_place

    require_own_rows(data, "the unlearn-pii suite takes its rows from UnlearnPII")
    if data.source is None:
        raise UsageError(
            "the unlearn-pii suite needs UnlearnPII's files",
            hint="name their folder: --source DIR, or eval.source in the recipe",
        )
    place = find_place(data.source)
    forget, retain = (files.load_side(place, side, limit=data.limit) for side in DIRECT)
    full = ("answer", "paraphrase", "perturbed")
    splits = (
        Split("forget", forget.direct, full, generate=True, stats=True, scoring=_SCORING),
        Split("retain", retain.direct, full, generate=True, scoring=_SCORING),
        Split("forget_paraphrased", forget.paraphrased, generate=True, scoring=_SCORING),
        Split("forget_inverted", forget.inverted, generate=True, scoring=_SCORING),
    )
    options = {"rows": f"{forget.name}, {retain.name}", "limit": str(data.limit or "none")}
    return Suite("unlearn-pii", splits, measure, MAX_NEW_TOKENS, options=options, profiles=("canonical",))


def measure(
    tables: Tables,
    *,
    reference: Tables | None = None,
    profile: Profile = "canonical",
    allow_missing: bool = False,
) -> Measured:
    """Every metric of the suite on one model, with 95 % intervals bootstrapped over people.

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
    require_canonical(profile, suite="unlearn-pii")
    views = views_of(tables)
    theirs = reference_views(views, reference)
    return scored(views, theirs, fill=fill, rule=rule, allow_missing=allow_missing)


def rule(name: str) -> Rule:
    """How a metric is judged."""
    split = name.partition(".")[0]
    return Rule("lower") if split in OTHER_FORMS else tofu_canonical.rule(name)


def fill(sheet: Sheet, reference: Views | None) -> None:
    """Compute every metric of one model."""
    for split in SPLITS:
        sheet.mean(f"{split}.{LEAKAGE}", split, partial(SplitView.answer_score, name=LEAKAGE), ("generations",))
    tofu_canonical.fill(sheet, reference)
    sheet.skipped["model_utility"] = NO_UTILITY
    for split in OTHER_FORMS:
        for metric, per_row in _PER_ROW.items():
            sheet.mean(f"{split}.{metric}", split, per_row)
