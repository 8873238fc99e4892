"""What a bench found: which setting of each method was chosen, and the numbers of the chosen ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from expunge import __version__
from expunge.bench.plan import Cell
from expunge.bench.settings import COMMON, CRITERION, Setting, words
from expunge.demo.progress import last_line

SCHEMA = 1
FORGET, RETAIN = "forget.extraction_strength", "retain.extraction_strength"
COLUMNS: Mapping[str, str] = {
    FORGET: "forget ES",
    RETAIN: "retain ES",
    "forget.truth_ratio": "truth ratio",
    "forget_quality": "KS p",
    "energy.auroc": "energy AUROC",
    "retain_utility": "retain utility",
    "seconds": "seconds",
    "peak_memory_mb": "peak MB",
}
"""Metric, or what a cell took -> what the table calls it."""


class Outcome(NamedTuple):
    """One cell, finished or failed."""

    cell: Cell
    found: Mapping[str, Any] | None
    """What its file says; None for a failed one."""
    error: str = ""
    """Message or traceback of a failed one."""
    hint: str | None = None

    def value(self, column: str) -> float | None:
        """A column's number, where there is one."""
        if self.found is None:
            return None
        score = self.found["metrics"].get(column, self.found.get(column))
        value: float | None = score["value"] if isinstance(score, dict) else score
        return value

    def closeness(self, retrained: float) -> float:
        """The criterion: what is kept, less the distance from the retrained model on the forget set."""
        kept, forgotten = self.value(RETAIN), self.value(FORGET)
        assert kept is not None
        assert forgotten is not None
        return kept - abs(forgotten - retrained)

    def to_json(self) -> dict[str, Any]:
        """As the bench's JSON lists it."""
        common = {"seed": self.cell.seed, "setting": dict(self.cell.setting), "path": str(self.cell.path)}
        if self.found is None:
            return {**common, "status": "failed", "error": self.error, "hint": self.hint}
        rest = {name: value for name, value in self.found.items() if name != "key"}
        return {**common, "status": "finished", **rest}


class MethodResult(NamedTuple):
    """One method: its trials on the tuning world and its chosen setting on the others."""

    name: str
    trials: tuple[Outcome, ...]
    scores: tuple[float | None, ...]
    """The criterion of each trial; None for a failed one."""
    chosen: int | None
    """Place of the chosen trial; None where all failed."""
    runs: tuple[Outcome, ...]

    @property
    def setting(self) -> Setting:
        """The chosen one."""
        return {} if self.chosen is None else self.trials[self.chosen].cell.setting

    @property
    def tuned(self) -> Setting:
        """The part of it in which the trials differ."""
        others = [trial.cell.setting for trial in self.trials]
        return {
            key: value
            for key, value in self.setting.items()
            if key == "train.learning_rate" or any(other.get(key) != value for other in others)
        }

    @property
    def failed(self) -> list[Outcome]:
        """Cells that did not finish."""
        return [outcome for outcome in (*self.trials, *self.runs) if outcome.found is None]

    def to_json(self) -> dict[str, Any]:
        """As the bench's JSON lists it."""
        return {
            "name": self.name,
            "setting": dict(self.setting),
            "setting_in_words": words(self.tuned),
            "chosen": None if self.chosen is None else self.chosen + 1,
            "values": spread([[outcome.value(column) for outcome in self.runs] for column in COLUMNS]),
            "failed": len(self.failed),
            "trials": [
                {"score": score, **outcome.to_json()} for score, outcome in zip(self.scores, self.trials, strict=True)
            ],
            "runs": [outcome.to_json() for outcome in self.runs],
        }


class Base(NamedTuple):
    """The starting or the retrained models of the worlds reported on."""

    name: str
    paths: tuple[Path, ...]
    metrics: tuple[Mapping[str, Any], ...]
    """Of each world, metric -> its JSON form."""

    def to_json(self) -> dict[str, Any]:
        """As the bench's JSON lists it."""
        columns = [[(one.get(column) or {}).get("value") for one in self.metrics] for column in COLUMNS]
        return {"name": self.name, "paths": [str(path) for path in self.paths], "values": spread(columns)}


class BenchResult(NamedTuple):
    """What `expunge bench methods` prints."""

    seconds: float
    people: int
    tuned_on: int
    """Seed of the tuning world."""
    seeds: tuple[int, ...]
    trials: int
    bases: tuple[Base, ...]
    methods: tuple[MethodResult, ...]

    @property
    def failed(self) -> list[Outcome]:
        """Cells that did not finish."""
        return [outcome for method in self.methods for outcome in method.failed]

    def to_json(self) -> dict[str, Any]:
        """Everything, cell by cell."""
        return {
            "schema": SCHEMA,
            "version": __version__,
            "seconds": self.seconds,
            "people": self.people,
            "tuned_on": self.tuned_on,
            "seeds": list(self.seeds),
            "trials": self.trials,
            "criterion": CRITERION,
            "common": dict(COMMON),
            "columns": dict(COLUMNS),
            "bases": [base.to_json() for base in self.bases],
            "methods": [method.to_json() for method in self.methods],
            "failed": [
                {"cell": outcome.cell.name, "error": last_line(outcome.error), "hint": outcome.hint}
                for outcome in self.failed
            ],
        }


def choose(scores: Sequence[float | None]) -> int | None:
    """The first place of the highest score; None where nothing has one."""
    places = [place for place, score in enumerate(scores) if score is not None]
    return max(places, key=lambda place: (scores[place], -place), default=None)


def spread(columns: Sequence[Sequence[float | None]]) -> dict[str, Any]:
    """Column -> mean, lowest and highest over worlds, and each; a column without a number is None."""
    return {name: _spread(values) for name, values in zip(COLUMNS, columns, strict=True)}


def _spread(values: Sequence[float | None]) -> dict[str, Any] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"value": sum(known) / len(known), "low": min(known), "high": max(known), "values": list(values)}
