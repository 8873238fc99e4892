"""What the suites of multiple-choice questions share: how they are declared, and what is read off their options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from expunge.data.multiple_choice import Question, to_example
from expunge.errors import DataError, MetricError
from expunge.evals.suite import Measure, Measured, RowValues, Split, Suite, SuiteData, Tables
from expunge.evals.suites.checks import require_canonical, require_own_rows
from expunge.evals.suites.tofu_sheet import Rule, Views, views_of
from expunge.metrics.estimate import Estimate, mean_estimate, pooled_estimate
from expunge.metrics.multiple_choice import (
    Choices,
    accuracy,
    answer_probability,
    chance,
    choices_of,
    confidence,
)
from expunge.metrics.pairing import check_same_rows
from expunge.metrics.ragged import Array
from expunge.metrics.score import Score
from expunge.metrics.view import SplitView

TEMPLATE = "harness"
"""Prompts are lm-evaluation-harness's unless another template is asked for."""
BELOW = "below_chance"
ONE_ROW = "a single question has no interval that could lie below chance"

_PER_ROW: dict[str, Callable[[Choices], Array]] = {
    "accuracy": accuracy,
    "answer_probability": answer_probability,
    "confidence": confidence,
}
_GUESSED = ("accuracy", "answer_probability")
"""What guessing scores 1/n on: the ideal where less of it is better."""


class Topic(NamedTuple):
    """The questions of one split."""

    about: str
    """What the prompt calls them."""
    questions: Sequence[Question]
    pool: Sequence[Question] = ()
    """Rows that shots are taken from."""


class Layout(NamedTuple):
    """What a suite reports."""

    suite: str
    """Also the name of all its questions together, for which every metric is reported."""
    rules: Mapping[str, Rule]
    """Metric -> how it is judged."""
    by_split: Sequence[str]
    """Those of them that are reported for every split and category as well."""
    categories: Mapping[str, Sequence[str]] = {}
    """Name -> the splits whose rows are put together under it."""


class _Part(NamedTuple):
    """One split, or several put together."""

    estimates: dict[str, Estimate]
    chance: float
    """What guessing scores."""
    rows: Mapping[str, RowValues] = {}
    """Metric -> what it is the mean of, of one split."""


def declare(layout: Layout, topics: Mapping[str, Topic], data: SuiteData, measure: Measure, *, rows: str) -> Suite:
    """A suite of one split per topic, of which the letter of every option is traced.

    Args:
        layout: names the suite.
        topics: split -> its questions.
        data: `num_fewshot` answered questions of a topic's pool stand before each of its own; `limit` holds for each
            split.
        measure: reads the tables.
        rows: where the questions come from, for the manifest.

    Raises:
        UsageError: rows that the recipe names, which have no options.
        DataError: a pool with fewer rows than shots, or a topic that is named like the suite.
    """
    name = layout.suite
    require_own_rows(data, f"the suite {name!r} has questions of its own")
    if name in topics:
        raise DataError(f"questions are named {name!r}, like the suite itself", hint="rename their file or subject")
    splits = tuple(_split(split, topic, data) for split, topic in topics.items())
    options = {"rows": rows, "num_fewshot": str(data.num_fewshot), "limit": str(data.limit or "none")}
    return Suite(name, splits, measure, template=TEMPLATE, options=options, profiles=("canonical",))


def _split(name: str, topic: Topic, data: SuiteData) -> Split:
    shots = topic.pool[: data.num_fewshot]
    if len(shots) < data.num_fewshot:
        raise DataError(
            f"{name} has {len(shots)} rows to take shots from, and {data.num_fewshot} are asked for",
            hint=f"set --num-fewshot {len(shots)}, or add rows to its dev file",
        )
    examples = [
        to_example(question, id=f"{name}:{number}", about=topic.about, shots=shots)
        for number, question in enumerate(topic.questions[: data.limit])
    ]
    return Split(name, tuple(examples), ("options",))


def measured(tables: Tables, layout: Layout, *, reference: Tables | None, profile: str) -> Measured:
    """Every metric of a suite, with 95 % intervals over questions; several splits together are resampled each apart.

    Args:
        tables: the passes of the model that is measured.
        layout: what is reported, and how it is judged.
        reference: those of the retrained model, over the same rows; its values are then the ideals.
        profile: `canonical`.

    Returns:
        Scores by name, all questions first, and why others are absent.

    Raises:
        MetricError: rows are missing or not numbers, or the reference was measured on other rows.
        UsageError: another profile.
    """
    require_canonical(profile, suite=layout.suite)
    views = views_of(tables)
    parts = _parts(views, layout)
    retrained = {} if reference is None else _reference(views, views_of(reference), layout)
    scores: dict[str, Score] = {}
    rows: dict[str, RowValues] = {}
    skipped = _incomplete(views, layout)
    for name, part in parts.items():
        for metric in layout.rules if name == layout.suite else layout.by_split:
            rule = layout.rules[metric]
            if metric != BELOW:
                guess = part.chance if rule.direction == "lower" and metric in _GUESSED else None
                ideal = retrained[name].estimates[metric].value if retrained else guess
                scores[f"{name}.{metric}"] = part.estimates[metric].score(rule.direction, ideal=ideal)
                if metric in part.rows:
                    rows[f"{name}.{metric}"] = part.rows[metric]
            elif (flag := _below(part, rule)) is not None:
                scores[f"{name}.{metric}"] = flag
            else:
                skipped[f"{name}.{metric}"] = ONE_ROW
    return Measured(scores, skipped, rows)


def _parts(views: Views, layout: Layout, *, intervals: bool = True) -> dict[str, _Part]:
    """All questions, then categories of which every split is there, then splits."""
    splits = {name: _part(view, intervals) for name, view in views.items()}
    together: dict[str, Sequence[str]] = {layout.suite: tuple(splits)}
    for name, members in layout.categories.items():
        if name not in splits and all(member in splits for member in members):
            together[name] = members
    return {name: _pooled([splits[member] for member in members]) for name, members in together.items()} | splits


def _part(view: SplitView, intervals: bool) -> _Part:
    choices = choices_of(view)
    columns = {metric: view.column(per_row(choices), intervals=intervals) for metric, per_row in _PER_ROW.items()}
    estimates = {metric: mean_estimate(column, name=f"{view.split}.{metric}") for metric, column in columns.items()}
    rows = {metric: RowValues(view.split, view.row, column.values, column.valid) for metric, column in columns.items()}
    return _Part(estimates, float(chance(choices).mean()), rows)


def _pooled(parts: Sequence[_Part]) -> _Part:
    estimates = {metric: pooled_estimate([part.estimates[metric] for part in parts]) for metric in _PER_ROW}
    sizes = [part.estimates["accuracy"].n for part in parts]
    guess = sum(size * part.chance for size, part in zip(sizes, parts, strict=True)) / sum(sizes)
    return _Part(estimates, guess)


def _below(part: _Part, rule: Rule) -> Score | None:
    """1 where the interval of the accuracy lies below chance; None where there is no interval."""
    found = part.estimates["accuracy"].score("lower")
    if found.high is None:
        return None
    return Score(float(found.high < part.chance), None, None, found.n, found.n_total, rule.ideal, rule.direction)


def _reference(views: Views, theirs: Views, layout: Layout) -> dict[str, _Part]:
    """The retrained model's values, after checking that they are of the same rows."""
    if absent := [name for name in views if name not in theirs]:
        raise MetricError(
            f"the reference run has no {', '.join(absent)} rows",
            hint="evaluate it on the same suite and the same source",
        )
    check_same_rows(views, theirs, needed=next(iter(views)))
    try:
        return _parts({name: theirs[name] for name in views}, layout, intervals=False)
    except MetricError as error:
        raise MetricError(f"the reference run: {error.message}", hint=error.hint) from error


def _incomplete(views: Views, layout: Layout) -> dict[str, str]:
    """Categories of which only some splits are there."""
    found = {}
    for name, members in layout.categories.items():
        absent = [member for member in members if member not in views]
        if 0 < len(absent) < len(members):
            more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
            found[f"{name}.accuracy"] = f"no {', '.join(absent[:3])}{more} rows in this evaluation"
    return found
