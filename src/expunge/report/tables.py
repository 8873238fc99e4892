"""The table of numbers: one line per metric, one column per model, grouped by the question it answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from expunge.metrics.score import Score
from expunge.report.collect import EvaluatedRun
from expunge.report.numbers import in_unit, interval, rows
from expunge.report.words import GROUPS, Group

_YARDSTICK = "it is the yardstick"
_OF_THE_START = frozenset({"forms.dependence_index", "neighbours.retention", "multi_hop.leakage"})
"""Metrics that say how much of the starting model's is left."""


class Model(NamedTuple):
    """One column: a run, or why there is none."""

    role: str
    """`this`, `start`, `retrained` or `other`."""
    run: EvaluatedRun | None
    reason: str | None = None


Models = Mapping[str, Model]
"""What a column is called -> its model."""


class Cell(NamedTuple):
    """One value, or why it is not there."""

    who: str
    role: str
    value: str | None
    interval: str
    note: str | None


class Line(NamedTuple):
    """One metric."""

    metric: str
    label: str
    meaning: str
    ideal: str
    cells: tuple[Cell, ...]
    n: str


class Block(NamedTuple):
    """The metrics that answer one question."""

    title: str
    lines: tuple[Line, ...]
    absent: tuple[str, ...]
    """Sentences about what was not measured."""


def blocks(models: Models) -> tuple[Block, ...]:
    """The key metrics in plain words. A group without a measured metric says so, or is left out (`Group.absent`)."""
    found = (_block(group, models) for group in GROUPS)
    return tuple(block for block in found if block.lines or block.absent)


def everything(models: Models) -> tuple[Line, ...]:
    """Every metric that any of the models has, by name."""
    names = dict.fromkeys(name for model in models.values() if model.run for name in model.run.scores)
    return tuple(_line(name, name, "", models) for name in names)


def skipped(models: Models) -> dict[str, list[str]]:
    """Reason -> the metrics that the run reported on lacks for it."""
    found: dict[str, list[str]] = {}
    for name, reason in _subject(models).skipped.items():
        found.setdefault(reason, []).append(name)
    return found


def _block(group: Group, models: Models) -> Block:
    measured = {name for model in models.values() if model.run for name in model.run.scores}
    lines = [_line(row.metric, row.label, row.meaning, models) for row in group.rows if row.metric in measured]
    reasons = _subject(models).skipped
    gone = [row for row in group.rows if row.metric in reasons and row.metric not in measured]
    absent = [f"{row.label}: not measured ({reasons[row.metric]})." for row in gone]
    if not lines and not absent and group.absent is not None:
        absent = [group.absent]
    return Block(group.title, tuple(lines), tuple(absent))


def _line(metric: str, label: str, meaning: str, models: Models) -> Line:
    ours = _subject(models).scores.get(metric)
    known = next(
        (model.run.scores[metric] for model in models.values() if model.run and metric in model.run.scores), None
    )
    judged = ours or known
    cells = tuple(_cell(metric, who, model) for who, model in models.items())
    return Line(metric, label, meaning, _ideal(metric, judged), cells, rows(judged) if judged else "")


def _cell(metric: str, who: str, model: Model) -> Cell:
    if model.run is None:
        return Cell(who, model.role, None, "", model.reason or "not measured")
    score = model.run.scores.get(metric)
    if score is None:
        return Cell(who, model.role, None, "", _why_not(metric, model, model.run))
    return Cell(who, model.role, in_unit(metric, score.value), interval(metric, score), None)


def _why_not(metric: str, model: Model, run: EvaluatedRun) -> str:
    if metric in _OF_THE_START and model.role in ("start", "retrained"):
        return _YARDSTICK if model.role == "start" else "it was not unlearned"
    if metric.startswith("forget_quality") and model.role == "retrained":
        return _YARDSTICK
    return run.skipped.get(metric, "not measured")


def _ideal(metric: str, score: Score | None) -> str:
    if score is None:
        return ""
    if score.ideal is not None:
        return in_unit(metric, score.ideal)
    return {"match": "as retrained", "lower": "low", "higher": "high"}[score.direction]


def _subject(models: Models) -> EvaluatedRun:
    """The run the page is about; of several equals the first."""
    found = [model.run for model in models.values() if model.role == "this" and model.run]
    return (found or [model.run for model in models.values() if model.run])[0]
