"""Which of a run's evaluations is the best one, and when waiting for a better one ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from expunge.catalog import unknown
from expunge.config.schema import KeepBestRule
from expunge.errors import UsageError
from expunge.evals.suite import Measured
from expunge.metrics.conditions import check, parse_conditions
from expunge.metrics.registry import direction_of, require_metric

KEY = "train.keep_best"
CONDITIONS = f"{KEY}.subject_to"


class Best(NamedTuple):
    """The best point so far."""

    step: int
    metric: str
    value: float


class Judged(NamedTuple):
    """What is made of one evaluation."""

    best: bool
    """Whether no earlier point that counts is as good."""
    broken: tuple[str, ...]
    """Conditions that it breaks."""


class Keeper:
    """Compares a run's evaluations; of two equal ones the earlier is the better.

    Args:
        rule: metric, direction and conditions.
        patience: evaluations in a row without a better one after which waiting ends; None: never.
        suite: what is run, to know its metrics before it has run.

    Raises:
        UsageError: a metric or condition that this suite cannot report, or no direction that can be followed.
    """

    def __init__(self, rule: KeepBestRule, *, patience: int | None = None, suite: str) -> None:
        self.metric, self.patience = rule.metric, patience
        self.conditions = parse_conditions(rule.subject_to, asked=CONDITIONS)
        self.best: Best | None = None
        self.waited = 0
        """Evaluations since the best one."""
        for name in self.metrics:
            require_metric(name, suite=suite)
        self._direction = rule.direction or _followed(rule.metric, direction_of(rule.metric))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric that is compared, once."""
        return tuple(dict.fromkeys((self.metric, *(condition.metric for condition in self.conditions))))

    @property
    def spent(self) -> bool:
        """Whether waiting has ended."""
        return self.patience is not None and self.waited >= self.patience

    def judge(self, step: int, measured: Measured) -> Judged:
        """Compare the evaluation of a step with those before it.

        Raises:
            UsageError: a metric that was not measured, with the reason.
        """
        for name in self.metrics:
            _require(name, measured)
        score = measured.scores[self.metric]
        direction = self._direction or _followed(self.metric, score.direction)
        broken = tuple(each.condition for each in check(self.conditions, measured.scores, {}) if not each.met)
        better = self.best is None or (
            score.value > self.best.value if direction == "up" else score.value < self.best.value
        )
        if better and not broken:
            self.best, self.waited = Best(step, self.metric, score.value), 0
            return Judged(True, ())
        self.waited += 1
        return Judged(False, broken)

    def state_dict(self) -> dict[str, Any]:
        """The best point and how long ago it was."""
        return {"best": None if self.best is None else self.best._asdict(), "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`'s result."""
        self.best = None if state["best"] is None else Best(**state["best"])
        self.waited = int(state["waited"])


def _followed(metric: str, direction: str | None) -> Literal["down", "up"] | None:
    """The way to go; None where the suite has yet to say."""
    if direction == "match":
        raise UsageError(
            f"{KEY}: {metric} is best where it is as in a retrained model, neither low nor high",
            hint=f"say which way to go with {KEY}.direction (down or up), or choose another metric",
        )
    return None if direction is None else "down" if direction == "lower" else "up"


def _require(name: str, measured: Measured) -> None:
    if name in measured.skipped:
        raise UsageError(
            f"{KEY}: {name} was not measured: {measured.skipped[name]}",
            hint="choose a metric that this run's evaluations report, or give eval the rows it needs",
        )
    if name not in measured.scores:
        raise unknown("metric", name, list(measured.scores))
