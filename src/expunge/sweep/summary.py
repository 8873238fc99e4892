"""What a sweep found: every trial, the best one that keeps the conditions, and the Pareto front."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from expunge import __version__
from expunge.config.load import load_recipe
from expunge.runs.store import atomic_write_json, atomic_write_text
from expunge.sweep.goal import Goal, Values, front
from expunge.sweep.plan import Sweep, start_values, trial_name

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

SCHEMA = 1
SUMMARY, BEST = "summary.json", "best.yaml"
STATES = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
"""Optuna's word for a trial's state -> ours."""


class TrialResult(NamedTuple):
    """One trial."""

    number: int
    state: str
    """`finished`, `pruned`, `failed` or `running`."""
    params: Mapping[str, Any]
    values: Values
    """Every metric; empty unless finished."""
    feasible: bool | None
    """Whether it satisfies the conditions; None unless finished."""
    seconds: float | None
    reason: str | None
    """Why it failed or was pruned."""
    pareto: bool = False
    """Whether no other finished trial is better in one axis of the goal and as good in the others."""


class Summary(NamedTuple):
    """A sweep as it stands."""

    sweep: Sweep
    start: Values
    """The starting model's metrics."""
    trials: tuple[TrialResult, ...]

    @property
    def finished(self) -> bool:
        """Whether every trial has ended."""
        ended = [trial for trial in self.trials if trial.state not in ("running", "waiting")]
        return len(ended) >= self.sweep.trials

    @property
    def best(self) -> TrialResult | None:
        """The trial that satisfies the conditions with the best value; None without one, or with several objectives."""
        goal = self.sweep.goal
        feasible = [trial for trial in self.trials if trial.feasible]
        if len(goal.objectives) > 1 or not feasible:
            return None
        # Among equals the one that keeps more.
        return min(feasible, key=lambda trial: ([axis.cost(trial.values) for axis in goal.axes], trial.number))

    @property
    def pareto(self) -> list[TrialResult]:
        """The front, by its first axis."""
        axis = self.sweep.goal.axes[0]
        return sorted((trial for trial in self.trials if trial.pareto), key=lambda trial: axis.cost(trial.values))

    def command(self, trial: TrialResult) -> str:
        """What repeats a trial, as a run of its own."""
        place = f"output_dir=runs/{self.sweep.root.name}-{trial.number}"
        words = ("expunge", "unlearn", self.sweep.recipe, *self.sweep.overrides, *self.sweep.changes(trial.params))
        return shlex.join([*words, place])

    def to_json(self) -> dict[str, Any]:
        """`summary.json`."""
        best = self.best
        return {
            "schema": SCHEMA,
            "version": __version__,
            "finished": self.finished,
            "recipe": self.sweep.recipe,
            "overrides": list(self.sweep.overrides),
            "space": {dimension.key: dimension.text for dimension in self.sweep.space},
            "goal": self.sweep.goal.to_json(),
            "in_words": self.sweep.goal.in_words(),
            "seed": self.sweep.seed,
            "number_of_trials": self.sweep.trials,
            "start": dict(self.start),
            "trials": [
                {**trial._asdict(), "values": dict(trial.values), "path": trial_name(trial.number)}
                for trial in self.trials
            ],
            "best": best and {"number": best.number, "command": self.command(best), "recipe": BEST},
            "pareto": [{"number": trial.number, "command": self.command(trial)} for trial in self.pareto],
        }

    def write(self) -> None:
        """Put `summary.json` down, and `best.yaml` where there is a best trial."""
        atomic_write_json(self.sweep.root / SUMMARY, self.to_json())
        if self.best is not None:
            atomic_write_text(self.sweep.root / BEST, best_recipe(self.sweep, self.best))
        else:
            (self.sweep.root / BEST).unlink(missing_ok=True)


def summarise(sweep: Sweep, trials: Sequence[FrozenTrial]) -> Summary:
    """The summary of a study's trials."""
    start = start_values(sweep)
    found = [_result(sweep, start, trial) for trial in trials]
    return Summary(sweep, start, tuple(with_front(sweep.goal, found)))


def with_front(goal: Goal, trials: Sequence[TrialResult]) -> list[TrialResult]:
    """The trials with those on the Pareto front marked.

    With one objective the front is drawn over it and what the conditions guard, so every finished trial counts; with
    several, only those that satisfy the conditions.
    """
    several = len(goal.objectives) > 1
    counting = [trial for trial in trials if trial.feasible is not None and (trial.feasible or not several)]
    places = front([[axis.cost(trial.values) for axis in goal.axes] for trial in counting])
    numbers = {counting[place].number for place in places}
    return [trial._replace(pareto=trial.number in numbers) for trial in trials]


def best_recipe(sweep: Sweep, trial: TrialResult) -> str:
    """A trial's recipe as YAML; without a place to run in, since that is nobody's twice."""
    settings = load_recipe(sweep.settings, sweep.changes(trial.params)).given
    first = f"# Trial {trial.number} of {sweep.root.name}: {sweep.goal.in_words()}.\n"
    return first + str(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def _result(sweep: Sweep, start: Values, trial: FrozenTrial) -> TrialResult:
    state = STATES[trial.state.name]
    values = trial.user_attrs.get("values", {}) if state == "finished" else {}
    params = {one.key: one.read(trial.params[one.key]) for one in sweep.space if one.key in trial.params}
    return TrialResult(
        trial.number,
        state,
        params,
        values,
        sweep.goal.feasible(values, start) if values else None,
        trial.user_attrs.get("seconds"),
        trial.user_attrs.get("reason") if state in ("failed", "pruned") else None,
    )


def default_folder(recipe: str) -> Path:
    """`runs/sweep-<recipe>`."""
    return Path("runs") / f"sweep-{Path(recipe).stem}"
