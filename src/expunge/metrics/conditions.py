"""`forget.extraction_strength>0.1`: a condition on a measurement, as commands and recipes write it."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from expunge.catalog import unknown
from expunge.errors import MetricError, UsageError
from expunge.metrics.score import Score

_FORM = re.compile(r"\s*(?P<metric>[^<>=\s]+)\s*(?P<sign><=|>=|<|>)\s*(?P<bound>[^<>=\s]+)\s*")
_SIGNS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


class Condition(NamedTuple):
    """One parsed condition."""

    text: str
    metric: str
    sign: str
    bound: float
    asked: str
    """The option or key it was written under, for messages."""

    def holds(self, value: float) -> bool:
        """Whether a measured value meets it."""
        return bool(_SIGNS[self.sign](value, self.bound))


class Checked(NamedTuple):
    """A condition and what was measured."""

    condition: str
    value: float
    met: bool


def parse_conditions(texts: Sequence[str], *, asked: str) -> list[Condition]:
    """Conditions as they were written.

    Args:
        texts: each METRIC, one of < <= > >=, and a number.
        asked: the option or key they stand under, e.g. `--fail-if`.

    Raises:
        UsageError: not of that form.
    """
    return [_parse(text, asked) for text in texts]


def _parse(text: str, asked: str) -> Condition:
    match = _FORM.fullmatch(text)
    try:
        if match is None:
            raise ValueError(text)
        bound = float(match["bound"])
        if math.isnan(bound):
            raise ValueError(text)
    except ValueError:
        raise UsageError(
            f"{asked} {text!r} is not a condition",
            hint='write METRIC, one of < <= > >=, and a number: "forget.extraction_strength>0.1"',
        ) from None
    return Condition(text.strip(), match["metric"], match["sign"], bound, asked)


def check(conditions: Sequence[Condition], scores: Mapping[str, Score], skipped: Mapping[str, str]) -> list[Checked]:
    """Compare each condition with its score's value.

    Raises:
        MetricError: the metric was skipped, so that nothing can be said about it.
        UsageError: no such metric.
    """
    checked = []
    for condition in conditions:
        if condition.metric in skipped:
            raise MetricError(
                f"{condition.asked} {condition.text!r}: {condition.metric} was not measured: "
                f"{skipped[condition.metric]}",
                hint="give what it needs, or drop the condition",
            )
        if condition.metric not in scores:
            raise unknown("metric", condition.metric, list(scores))
        value = scores[condition.metric].value
        checked.append(Checked(condition.text, value, condition.holds(value)))
    return checked
