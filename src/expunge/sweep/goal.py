"""What a sweep looks for: one metric under conditions, or several at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from expunge.catalog import unknown
from expunge.errors import MetricError, UsageError
from expunge.metrics.conditions import Condition, parse_conditions
from expunge.metrics.registry import require_metric

FORGET, RETAIN = "forget.extraction_strength", "retain.extraction_strength"
KEPT = f"{RETAIN} >= 0.9 * start"
"""The condition unless others are given, with one metric to look for: a model that is destroyed has forgotten too."""

_OF_START = re.compile(r"(?P<before>[^*]*[<>=])\s*(?:(?P<factor>[^*]*)\*)?\s*start\s*")
_MARGIN = 1e-9
"""How far a value on the bound itself lies outside where it must lie beyond it."""

Values = Mapping[str, float]
"""Metric -> its value."""


class Objective(NamedTuple):
    """A metric that is to be as low, or as high, as can be."""

    metric: str
    direction: Literal["minimise", "maximise"]

    def cost(self, values: Values) -> float:
        """Its value, the lower the better."""
        return values[self.metric] if self.direction == "minimise" else -values[self.metric]


class Constraint(NamedTuple):
    """A condition on a trial."""

    text: str
    condition: Condition
    of_start: bool
    """Whether the bound is a multiple of what the starting model has."""

    @property
    def metric(self) -> str:
        """What it is about."""
        return self.condition.metric

    @property
    def wants_more(self) -> bool:
        """Whether higher values are the safe ones."""
        return self.condition.sign in (">", ">=")

    def against(self, start: Values) -> Condition:
        """The condition with the number that a trial is compared with."""
        if not self.of_start:
            return self.condition
        return self.condition._replace(bound=self.condition.bound * start[self.metric])

    def met(self, values: Values, start: Values) -> bool:
        """Whether a trial satisfies it."""
        return self.against(start).holds(values[self.metric])

    def violation(self, values: Values, start: Values) -> float:
        """How far a trial is from satisfying it: at most 0 where it does."""
        excess = values[self.metric] - self.against(start).bound
        short = -excess if self.wants_more else excess
        return short if self.met(values, start) else max(short, _MARGIN)


class Goal(NamedTuple):
    """Objectives, and conditions on what counts."""

    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric it names, once."""
        named = [one.metric for one in self.objectives] + [one.metric for one in self.constraints]
        return tuple(dict.fromkeys(named))

    @property
    def axes(self) -> tuple[Objective, ...]:
        """What a Pareto front is drawn over: the objectives, or the only one and what the conditions guard."""
        guarded = [Objective(one.metric, "maximise" if one.wants_more else "minimise") for one in self.constraints]
        found: dict[str, Objective] = {}
        for one in self.objectives if len(self.objectives) > 1 else (*self.objectives, *guarded):
            found.setdefault(one.metric, one)
        return tuple(found.values())

    def feasible(self, values: Values, start: Values) -> bool:
        """Whether a trial satisfies every condition."""
        return all(one.met(values, start) for one in self.constraints)

    def in_words(self) -> str:
        """`minimise forget.extraction_strength subject to retain.extraction_strength >= 0.9 * start`."""
        wanted = ", ".join(f"{one.direction} {one.metric}" for one in self.objectives)
        return f"{wanted} subject to {', '.join(c.text for c in self.constraints)}" if self.constraints else wanted

    def to_json(self) -> dict[str, list[str]]:
        """The arguments that `parse_goal` reads it back from."""
        by = {
            direction: [one.metric for one in self.objectives if one.direction == direction]
            for direction in ("minimise", "maximise")
        }
        return {**by, "subject_to": [one.text for one in self.constraints]}


def parse_goal(
    minimise: Sequence[str] = (), maximise: Sequence[str] = (), subject_to: Sequence[str] | None = None
) -> Goal:
    """The goal that a command line names.

    Args:
        minimise: metrics; with none here nor in `maximise`, forget.extraction_strength.
        maximise: metrics.
        subject_to: `METRIC >= NUMBER`, `METRIC >= NUMBER * start` or `METRIC >= start` (or >, <, <=); unless said,
            `KEPT` for a single objective and nothing for several.

    Raises:
        UsageError: a metric named twice, or what is not a condition.
    """
    wanted = [Objective(name, "minimise") for name in minimise] + [Objective(name, "maximise") for name in maximise]
    objectives = tuple(wanted) or (Objective(FORGET, "minimise"),)
    names = [one.metric for one in objectives]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"{twice} is to be minimised or maximised twice", hint="name every metric once")
    texts = subject_to if subject_to is not None else (KEPT,) if len(objectives) == 1 else ()
    return Goal(objectives, tuple(_constraint(text) for text in texts))


def require_known(goal: Goal, suite: str) -> None:
    """Refuse a metric that the suite cannot have, before anything is computed.

    Raises:
        UsageError: with the nearest name there is.
    """
    for name in goal.metrics:
        require_metric(name, suite=suite)


def require_measured(goal: Goal, scores: Mapping[str, Any], skipped: Mapping[str, str]) -> list[str]:
    """Refuse a metric that the starting model's evaluation did not give.

    Args:
        goal: what names metrics.
        scores: metric -> JSON form of its score.
        skipped: metric -> why it is absent.

    Returns:
        Warnings: a metric that is pushed to where it is worse.

    Raises:
        UsageError: no such metric.
        MetricError: one that was skipped, with the reason.
    """
    for name in goal.metrics:
        if name in skipped:
            raise MetricError(
                f"{name} is not measured: {skipped[name]}", hint="give what it needs, or choose another metric"
            )
        if name not in scores:
            raise unknown("metric", name, list(scores))
    better = {"lower": "minimise", "higher": "maximise"}
    return [
        f"{one.metric} is better when {scores[one.metric]['direction']}, and this sweep would {one.direction} it"
        for one in goal.objectives
        if better.get(scores[one.metric]["direction"], one.direction) != one.direction
    ]


def front(costs: Sequence[Sequence[float]]) -> list[int]:
    """Places of the points that no other point dominates: as low everywhere and lower somewhere.

    Args:
        costs: points, the lower the better in each coordinate.
    """

    def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
        return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)

    return [place for place, point in enumerate(costs) if not any(dominates(other, point) for other in costs)]


def _constraint(text: str) -> Constraint:
    of_start = _OF_START.fullmatch(text)
    plain = f"{of_start['before']} {of_start['factor'] or 1}" if of_start else text
    (condition,) = parse_conditions([plain], asked="--subject-to")
    return Constraint(text.strip(), condition, of_start is not None)
