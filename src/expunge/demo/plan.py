"""What the demo carries out: which runs of which recipes on which world, in which order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from expunge.demo.workers import Job

SEED_OF_SECOND = 1000
"""Added to the seed of a second retrained model: other weights and row order, the same world."""


class Size(NamedTuple):
    """How large the demo is."""

    people: int
    rate: float
    """Share of retain prompts that the guard may refuse."""
    train: tuple[str, ...] = ()
    """Overrides of the recipes of the starting and the retrained model."""
    unlearn: tuple[str, ...] = ()
    """Overrides of the methods' recipes."""


FULL = Size(people=24, rate=0.02)
FAST = Size(
    people=12,
    rate=0.05,
    train=("train.global_batch_size=16", "train.num_train_epochs=5", "eval.limit=30"),
    unlearn=("train.num_train_epochs=5", "eval.limit=30"),
)
"""Too few prompts for the full size's rate, and too few rows for its thresholds."""


class Planned(NamedTuple):
    """One run of the demo."""

    name: str
    recipe: str
    """Packaged recipe."""
    kind: str
    """`train` or `unlearn`."""
    method: str


START = Planned("start", "world/start", "train", "none")
RETRAINED = Planned("retrained", "world/retrained", "train", "none")
SECOND = Planned("retrained_2", "world/retrained", "train", "none")
METHODS = tuple(Planned(name, f"world/{name}", "unlearn", name) for name in ("eua", "npo", "grad_diff"))


@dataclass(frozen=True)
class Plan:
    """The runs of one seed and where they lie."""

    seed: int
    size: Size
    folder: Path
    """Holds `world/` and one run directory per name."""
    second: bool = False
    """Whether a second retrained model is made, as a ceiling for what forgetting can reach."""

    @property
    def world(self) -> Path:
        """The world's files."""
        return self.folder / "world"

    @property
    def runs(self) -> tuple[Planned, ...]:
        """In the order they are shown."""
        return (START, RETRAINED, *((SECOND,) if self.second else ()), *METHODS)

    @property
    def bases(self) -> tuple[Planned, ...]:
        """The runs that can be kept between demos: nothing is unlearned in them."""
        return tuple(run for run in self.runs if run.kind == "train")

    def path(self, run: Planned) -> Path:
        """The run directory."""
        return self.folder / run.name

    def overrides(self, run: Planned) -> list[str]:
        """What differs from the packaged recipe."""
        seed = self.seed + (SEED_OF_SECOND if run is SECOND else 0)
        values: dict[str, Any] = {"output_dir": str(self.path(run)), "seed": seed, "eval.world": str(self.world)}
        if run.kind == "train":
            values |= self._files("train", ("retain",) if run is not START else ("forget", "multi_hop", "retain"))
            values |= self._files("tokenizer_corpus", ("forget", "multi_hop", "retain", "holdout"))
        else:
            values["model.model_name_or_path"] = str(self.path(START) / "model")
            values |= {**self._files("forget", ("forget",)), **self._files("retain", ("retain",))}
        more = self.size.train if run.kind == "train" else self.size.unlearn
        return [*(f"{key}={json.dumps(value)}" for key, value in values.items()), *more]

    def _files(self, role: str, names: tuple[str, ...]) -> Mapping[str, list[str]]:
        return {f"data.{role}": [str(self.world / f"{name}.jsonl") for name in names]}

    def job(self, run: Planned) -> Job:
        """Train or unlearn, then evaluate; EUA's run gets its guard as well."""
        at = {"path": str(self.path(run)), "seed": self.seed}
        steps: list[dict[str, Any]] = [
            {"do": run.kind, "recipe": run.recipe, "overrides": self.overrides(run), **at},
            {"do": "eval", **at},
        ]
        if run.method == "eua":
            steps.append({"do": "guard", "rate": self.size.rate, **at})
            steps.append({"do": "ask", "start": str(self.path(START)), **at})
        after = (self.job_name(START),) if run.kind == "unlearn" else ()
        return Job(self.job_name(run), tuple(steps), after)

    def job_name(self, run: Planned) -> str:
        """Unique over seeds."""
        return f"{self.seed}/{run.name}"
