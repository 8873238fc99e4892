"""The KnowUnDo suite: whether what should go is gone, and what lies near it is kept (arXiv 2407.01920).

Question and answer are plain text with an empty line between them, as in the release. Measuring reads tables only.
"""

from __future__ import annotations

from expunge.evals.suite import Measured, Profile, Split, Suite, SuiteData, Tables
from expunge.evals.suites.checks import require_canonical, require_own_rows
from expunge.evals.suites.leak_sheet import fill_leak
from expunge.evals.suites.tofu_sheet import PerRow, Rule, Sheet, Views, reference_views, scored, views_of
from expunge.metrics.memorization import exact_memorization, extraction_strength
from expunge.metrics.probability import probability

MAX_NEW_TOKENS = 200
SPLITS = ("forget", "retain")
UNLEARNED, RETAINED = "unlearn_success", "retention_success"
_PER_ROW: dict[str, PerRow] = {
    "probability": lambda view: probability(view.loss),
    "rougeL_recall": lambda view: view.generated("rougeL_recall"),
    "extraction_strength": lambda view: extraction_strength(view.answers("hit", "no_eos")),
    "exact_memorization": lambda view: exact_memorization(view.answers("hit", "no_eos")),
}


def knowundo(data: SuiteData) -> Suite:
    """Declare the suite.

    Args:
        data: `source` is a folder of KnowUnDo's files or a Hub id, `zjunlp/KnowUnDo` unless said; `#copyright` or
            `#privacy` behind it says which domain, where there are both. `limit` holds for each split.

    Raises:
        UsageError: rows of another origin are named, or which domain is meant is left open.
        DataError: files are missing, or rows cannot be used; they are named.
    """
    from expunge.data.benchmarks import knowundo as files
    from expunge.data.benchmarks.place import find_place

    require_own_rows(data, "the knowundo suite takes its rows from KnowUnDo")
    place = find_place(data.source or files.HUB)
    domain = files.domain_of(place)
    splits = tuple(
        Split(split, files.load_split(place, domain, split, limit=data.limit), generate=True) for split in SPLITS
    )
    options = {"rows": domain, "limit": str(data.limit or "none")}
    return Suite(
        "knowundo", splits, measure, MAX_NEW_TOKENS, template="plain", options=options, profiles=("canonical",)
    )


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
        reference: those of the retrained model, over the same rows; gives every metric's ideal.
        profile: `canonical`.
        allow_missing: accept metrics of which less than 99 % of the rows can be measured.

    Returns:
        Scores by name, why others are absent, and the rows that each mean was taken over.

    Raises:
        MetricError: rows are missing, doubled or not numbers, or the reference was measured on other rows.
        UsageError: another profile.
    """
    require_canonical(profile, suite="knowundo")
    views = views_of(tables)
    theirs = reference_views(views, reference)
    return scored(views, theirs, fill=fill, rule=rule, allow_missing=allow_missing)


def rule(name: str) -> Rule:
    """How a metric is judged."""
    return Rule("lower" if name.startswith("forget.") else "higher")


def fill(sheet: Sheet, reference: Views | None) -> None:
    """Compute every metric of one model."""
    sheet.mean(UNLEARNED, "forget", lambda view: 1 - _PER_ROW["exact_memorization"](view))
    sheet.mean(RETAINED, "retain", _PER_ROW["exact_memorization"])
    for split in SPLITS:
        for metric, per_row in _PER_ROW.items():
            sheet.mean(f"{split}.{metric}", split, per_row)
    fill_leak(sheet)
