"""The PISTOL suite: unlearning edges of a graph of contracts, and what becomes of the edges around them (2406.16810).

Measuring reads tables only, so it works on a machine without torch and without the rows themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from expunge.catalog import unknown
from expunge.data.benchmarks.pistol import Pistol, is_employment, load_pistol, relations
from expunge.data.example import Example
from expunge.errors import DataError, UsageError
from expunge.evals.suite import Measured, Profile, Split, Suite, SuiteData, Tables
from expunge.evals.suites.checks import require_canonical, require_own_rows
from expunge.evals.suites.leak_sheet import fill_sampled
from expunge.evals.suites.tofu_canonical import PER_ROW
from expunge.evals.suites.tofu_sheet import Need, PerRow, Rule, Sheet, Views, reference_views, scored, views_of
from expunge.metrics.estimate import pooled_estimate
from expunge.metrics.ranks import reciprocal_rank, top_hit_rate

FORGET, RETAIN, FACTUAL = "forget", "retain", "factual"
LINKED, FURTHER = "retain_linked", "retain_further"
SALES, EMPLOYMENT = "retain_independent_sales", "retain_independent_employment"
KEPT = (LINKED, FURTHER, SALES, EMPLOYMENT)
"""What becomes of kept edges, nearest first; all of them together are reported as `retain`."""
SPLITS = (FORGET, *KEPT, FACTUAL)
PUBLISHED_EDGE = "A_C"
"""What the release unlearns unless told otherwise."""
_NO_EDGES = SuiteData().forget_split
"""What `forget_split` says where nobody set it."""

METRICS: dict[str, tuple[PerRow, tuple[Need, ...]]] = {
    name: PER_ROW[name]
    for name in ("probability", "rougeL_recall", "rouge1_recall", "extraction_strength", "exact_memorization")
} | {
    "mrr": (lambda view: reciprocal_rank(view.answers("rank", "no_eos")), ()),
    "thr": (lambda view: top_hit_rate(view.answers("rank", "no_eos")), ()),
}
"""Reported of every split."""

ABSENT = {
    FORGET: "no forget rows in this evaluation",
    LINKED: "no kept edge shares a party with a forgotten one",
    FURTHER: "no kept edge is reached from a forgotten one over others",
    SALES: "no independent edge between companies",
    EMPLOYMENT: "no independent edge between a company and a person",
    FACTUAL: "no factual_data.json beside the contracts",
}
"""Split -> why it may not be there."""


def pistol(data: SuiteData) -> Suite:
    """Declare the suite.

    Args:
        data: `source` is a file of contracts, a folder that holds one, or a Hub id. `forget_split` names the edges to
            forget, joined by commas; unless set, they are those that the run's own forget rows are about, and for a
            model that is no run the published `A_C`. `limit` holds for each split.

    Raises:
        UsageError: no source, an edge that is not there, forget rows of no edge, or rows of another origin.
        DataError: a source that cannot be read, or every edge is to be forgotten.
    """
    require_own_rows(data, "the pistol suite takes its rows from PISTOL")
    if data.source is None:
        raise UsageError(
            "the pistol suite needs PISTOL's contracts",
            hint="--source sample_data_1.json, or eval.source in the recipe",
        )
    found = load_pistol(data.source)
    forgotten = _forgotten(data, found.edges, data.source)
    splits = tuple(
        Split(name, tuple(rows[: data.limit]), generate=True, stats=True)
        for name, rows in _rows(found, forgotten).items()
        if rows
    )
    options = {
        "rows": Path(data.source).name,
        "forget_split": ",".join(forgotten),
        "limit": str(data.limit or "none"),
    }
    return Suite("pistol", splits, measure, options=options, profiles=("canonical",))


def _forgotten(data: SuiteData, edges: dict[str, tuple[Example, ...]], source: str) -> list[str]:
    """The edges that are unlearned, in the order of the file."""
    if data.forget_split != _NO_EDGES:
        names = [name.strip() for name in data.forget_split.split(",")]
        for name in names:
            if name not in edges:
                raise unknown("edge", name, list(edges))
    elif data.trained and FORGET in data.trained:
        erased = {example.turns for example in data.trained[FORGET]}
        names = [edge for edge, rows in edges.items() if any(example.turns in erased for example in rows)]
        if not names:
            raise UsageError(
                f"none of the run's {len(data.trained[FORGET])} forget rows is a question of {source}",
                hint=f"name the edges to forget: --forget-split {','.join(list(edges)[:2])}",
            )
    elif PUBLISHED_EDGE in edges:
        names = [PUBLISHED_EDGE]
    else:
        raise UsageError(
            f"which edges of {source} were to be forgotten is not said",
            hint=f"--forget-split {next(iter(edges))}; it has: {', '.join(edges)}",
        )
    if len(set(names)) == len(edges):
        raise DataError(f"every edge of {source} is to be forgotten", hint="name fewer of them: --forget-split")
    return [edge for edge in edges if edge in names]


def _rows(found: Pistol, forgotten: Sequence[str]) -> dict[str, list[Example]]:
    rows: dict[str, list[Example]] = {name: [] for name in SPLITS}
    rows[FORGET] = [example for edge in forgotten for example in found.edges[edge]]
    for edge, relation in relations(found.edges, forgotten).items():
        independent = EMPLOYMENT if is_employment(edge) else SALES
        rows[{"linked": LINKED, "further": FURTHER, "independent": independent}[relation]] += found.edges[edge]
    rows[FACTUAL] = list(found.factual)
    return rows


def rule(name: str) -> Rule:
    """How a metric is judged."""
    return Rule("lower" if name.startswith(f"{FORGET}.") else "higher")


def measure(
    tables: Tables,
    *,
    reference: Tables | None = None,
    profile: Profile = "canonical",
    allow_missing: bool = False,
) -> Measured:
    """Every metric of the suite, with 95 % intervals bootstrapped over edges (of a single edge, over its questions).

    Args:
        tables: the passes of the model that is measured.
        reference: those of the retrained model, over the same rows; its values are then the ideals.
        profile: `canonical`.
        allow_missing: accept metrics of which less than 99 % of the rows can be measured.

    Returns:
        Scores by name, why others are absent, and the rows that each mean was taken over. `retain` is over all kept
        edges, each of its splits resampled by itself.

    Raises:
        MetricError: rows are missing, doubled or not numbers, or the reference was measured on other rows.
        UsageError: another profile.
    """
    require_canonical(profile, suite="pistol")
    views = views_of(tables)
    return scored(views, reference_views(views, reference), fill=fill, rule=rule, allow_missing=allow_missing)


def fill(sheet: Sheet, reference: Views | None) -> None:
    """Compute every metric of one model."""
    for split in SPLITS:
        for metric, (per_row, needs) in METRICS.items():
            sheet.mean(f"{split}.{metric}", split, per_row, needs, absent=ABSENT[split])
    fill_sampled(sheet)
    for metric in METRICS:
        kept = [sheet.estimates[f"{split}.{metric}"] for split in KEPT if f"{split}.{metric}" in sheet.estimates]
        if kept:
            sheet.estimates[f"{RETAIN}.{metric}"] = pooled_estimate(kept)
