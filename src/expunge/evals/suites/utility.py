"""The utility suite: ARC, HellaSwag, OpenBookQA and TruthfulQA by log-likelihood, which unlearning should leave alone.

Prompts, options and scores are those of lm-evaluation-harness. Measuring reads tables only.
"""

from __future__ import annotations

from types import MappingProxyType

from expunge.data.benchmarks.utility import TASKS, Questions, load_utility
from expunge.data.benchmarks.utility_rows import Item
from expunge.data.example import Example, Turn
from expunge.errors import MetricError, UsageError
from expunge.evals.suite import Measured, Profile, Split, Suite, SuiteData, Tables
from expunge.evals.suites.checks import require_canonical, require_own_rows
from expunge.evals.suites.multiple_choice import TEMPLATE
from expunge.evals.suites.tofu_sheet import Rule, Sheet, Views, scored, views_of
from expunge.metrics.estimate import average_estimate
from expunge.metrics.multiple_choice import (
    Choices,
    accuracy,
    answer_probability,
    choices_of,
    right_share,
)
from expunge.metrics.pairing import check_same_rows
from expunge.metrics.ragged import Array

NAME = "utility"
SEVERAL_RIGHT = ("truthfulqa_mc2",)
"""Of these `right_share` is measured, and no accuracy."""
NORMALISED = ("arc_easy", "arc_challenge", "hellaswag", "openbookqa")
"""Of these `accuracy_norm` is measured as well, as in the harness: their options are of different lengths."""
NO_LENGTHS = "the lengths of the options were not stored; evaluate again with --overwrite"


def utility(data: SuiteData) -> Suite:
    """Declare the suite: one split per task that the source holds.

    Args:
        data: `source` is a folder of the published files, some of the tasks being enough, or one of them; the
            published data sets of the Hub unless said; `limit` holds for each split.

    Raises:
        UsageError: shots are asked for, or rows of another origin are named.
        DataError: a source that is not there or holds no task, or rows that cannot be used.
    """
    require_own_rows(data, f"the suite {NAME!r} has questions of its own")
    if data.num_fewshot:
        raise UsageError(
            f"the suite {NAME!r} is asked without shots, but num_fewshot is {data.num_fewshot}",
            hint="with shots these tasks are in the suite harness: --suite harness --tasks arc_easy --num-fewshot 5",
        )
    found = load_utility(data.source)
    splits = tuple(
        Split(name, tuple(_example(name, item) for item in items[: data.limit]), ("options",))
        for name, items in found.items.items()
    )
    options = {"rows": _origin(found), "limit": str(data.limit or "none")}
    return Suite(NAME, splits, measure, template=TEMPLATE, options=options, profiles=("canonical",))


def _origin(found: Questions) -> str:
    pinned = [f"{TASKS[name].hub.repo}@{revision}" for name, revision in found.revisions.items()]
    return ", ".join(dict.fromkeys(pinned)) or "local"


def _example(task: str, item: Item) -> Example:
    gold = item.right[0]
    turns = (Turn("user", item.prompt), Turn("assistant", item.options[gold]))
    extra = MappingProxyType({"options": item.options, "gold": gold, "right": item.right})
    return Example(id=f"{task}:{item.row}", row=item.row, turns=turns, extra=extra)


def measure(
    tables: Tables,
    *,
    reference: Tables | None = None,
    profile: Profile = "canonical",
    allow_missing: bool = False,
) -> Measured:
    """Every metric of the suite on one model, with 95 % intervals over questions.

    Args:
        tables: the passes of the model that is measured.
        reference: those of the retrained model, over the same rows; its values are then the ideals.
        profile: `canonical`.
        allow_missing: changes nothing: a question whose options cannot all be scored is an error.

    Returns:
        Scores by name, and why others are absent.

    Raises:
        MetricError: rows are missing or not numbers, or the reference was measured on other rows.
        UsageError: another profile.
    """
    require_canonical(profile, suite=NAME)
    views = views_of(tables)
    theirs = None if reference is None else _same_rows(views, reference)
    return scored(views, theirs, fill=fill, rule=lambda name: Rule("higher"), allow_missing=allow_missing)


def _same_rows(views: Views, reference: Tables) -> Views:
    theirs = views_of(reference)
    if absent := [name for name in views if name not in theirs]:
        raise MetricError(
            f"the reference run has no {', '.join(absent)} rows",
            hint="evaluate it on the same suite and the same source",
        )
    check_same_rows(views, theirs, needed=next(iter(views)))
    return theirs


def fill(sheet: Sheet, reference: Views | None) -> None:
    """Compute every metric of one model."""
    found = {name: choices_of(view) for name, view in sheet.views.items()}
    plain = [name for name in found if name not in SEVERAL_RIGHT]
    for name in plain:
        _mean(sheet, f"{name}.accuracy", accuracy(found[name]))
    if plain:
        parts = [sheet.estimates[f"{name}.accuracy"] for name in plain]
        # All tasks first, as the suites of one benchmark have it.
        sheet.estimates = {f"{NAME}.accuracy": average_estimate(parts)} | sheet.estimates
    for name, choices in found.items():
        if name in SEVERAL_RIGHT:
            _several(sheet, name, choices)
        else:
            _mean(sheet, f"{name}.answer_probability", answer_probability(choices))
        if name in NORMALISED:
            _normalised(sheet, name, choices)


def _several(sheet: Sheet, name: str, choices: Choices) -> None:
    assert choices.every_right is not None  # `choices_of` fills it
    _mean(sheet, f"{name}.right_share", right_share(choices.scores, choices.every_right))


def _normalised(sheet: Sheet, name: str, choices: Choices) -> None:
    metric = f"{name}.accuracy_norm"
    if choices.characters is None:
        sheet.skipped[metric] = NO_LENGTHS
    else:
        _mean(sheet, metric, accuracy(choices, lengths=choices.characters))


def _mean(sheet: Sheet, metric: str, values: Array) -> None:
    sheet.mean(metric, metric.partition(".")[0], lambda view: values)
