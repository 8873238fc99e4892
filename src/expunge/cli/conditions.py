"""`--fail-if "forget.extraction_strength>0.1"`: turn a measurement into an exit code."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from expunge.catalog import unknown
from expunge.errors import MetricError, UsageError

if TYPE_CHECKING:
    from expunge.metrics.score import Score

MET = 5
"""Exit code when a condition is met."""

FailIf = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-if",
        metavar="CONDITION",
        help='Exit with 5 when it is met, e.g. "forget.extraction_strength>0.1"; repeatable.',
    ),
]

_FORM = re.compile(r"\s*(?P<metric>[^<>=\s]+)\s*(?P<sign><=|>=|<|>)\s*(?P<bound>[^<>=\s]+)\s*")
_SIGNS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


class Condition(NamedTuple):
    """One parsed `--fail-if`."""

    text: str
    metric: str
    sign: str
    bound: float


class Checked(NamedTuple):
    """A condition and what was measured."""

    condition: str
    value: float
    met: bool


def parse_conditions(texts: Sequence[str] | None) -> list[Condition]:
    """The conditions of the command line.

    Raises:
        UsageError: not of the form METRIC<NUMBER (or >, <=, >=).
    """
    return [_parse(text) for text in texts or ()]


def _parse(text: str) -> Condition:
    match = _FORM.fullmatch(text)
    try:
        if match is None:
            raise ValueError(text)
        bound = float(match["bound"])
        if math.isnan(bound):
            raise ValueError(text)
    except ValueError:
        raise UsageError(
            f"--fail-if {text!r} is not a condition",
            hint='write METRIC, one of < <= > >=, and a number: "forget.extraction_strength>0.1"',
        ) from None
    return Condition(text.strip(), match["metric"], match["sign"], bound)


def check(
    conditions: Sequence[Condition], scores: Mapping[str, Score], skipped: Mapping[str, str]
) -> list[Checked]:
    """Compare each condition with its score's value.

    Raises:
        MetricError: the metric was skipped, so that nothing can be said about it.
        UsageError: no such metric.
    """
    checked = []
    for condition in conditions:
        if condition.metric in skipped:
            raise MetricError(
                f"--fail-if {condition.text!r}: {condition.metric} was not measured: {skipped[condition.metric]}",
                hint="give what it needs, or drop the condition",
            )
        if condition.metric not in scores:
            raise unknown("metric", condition.metric, list(scores))
        value = scores[condition.metric].value
        checked.append(Checked(condition.text, value, bool(_SIGNS[condition.sign](value, condition.bound))))
    return checked
