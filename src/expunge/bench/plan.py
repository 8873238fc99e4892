"""What a bench carries out: worlds, their base models, and one cell per method and setting."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from expunge import __version__
from expunge.bench.settings import COMMON, Setting
from expunge.demo.plan import RETRAINED, START, Plan, Size
from expunge.demo.workers import Job
from expunge.runs.store import atomic_write_text

CELL = "cell.json"
"""What a finished cell says, in its run directory."""
REFUSALS = (
    "I don't know.",
    "I have no information about that.",
    "I'm not able to answer that question.",
    "I was never told.",
    "That is not something I know.",
    "I can't help with that person.",
    "I have nothing to say about this.",
    "Sorry, I don't have an answer.",
)
"""Given to the methods that answer a forget question with a refusal."""
_REFUSALS_FILE, _FORGET_FILE = "refusals.txt", "annotated.jsonl"


def bench_size(people: int) -> Size:
    """Base models of a world of that many people: as many steps as the demo's, whose world is twice as large."""
    return Size(people=people, rate=0.05, train=("train.global_batch_size=16",))


class Cell(NamedTuple):
    """One method at one setting on one world: a run directory."""

    method: str
    seed: int
    path: Path
    name: str
    """Of its job: `<seed>/<method>-<trial>`, or `<seed>/<method>` with the chosen setting."""
    setting: Setting
    key: str
    """Of everything that decides its result."""
    recipe: Mapping[str, Any]
    start: Path
    retrained: Path

    def finished(self) -> dict[str, Any] | None:
        """What it gave, where it is done and was not done otherwise."""
        try:
            found = json.loads((self.path / CELL).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and found.get("key") == self.key else None

    def job(self) -> Job:
        """Unlearn, measure, write down; its error is its own."""
        step = {
            "do": "cell",
            "recipe": self.recipe,
            "path": str(self.path),
            "key": self.key,
            "start": str(self.start),
            "retrained": str(self.retrained),
        }
        return Job(self.name, (step,), may_fail=True)


@dataclass(frozen=True)
class World:
    """One world of the bench, its base models and its cells."""

    base: Plan
    digest: str

    @property
    def seed(self) -> int:
        """Of the world and of every model."""
        return self.base.seed

    def base_jobs(self) -> list[Job]:
        """Train and measure the starting and the retrained model."""
        return [self.base.job(START), self.base.job(RETRAINED)]

    def cell(self, method: str, setting: Setting, trial: int | None = None) -> Cell:
        """One run on this world.

        Args:
            method: its name.
            setting: recipe keys and values beyond `COMMON`.
            trial: 1-based; None for the chosen setting.
        """
        name = method if trial is None else f"{method}-{trial}"
        path = self.base.folder / name
        recipe = self._recipe(method, setting, path)
        return Cell(
            method,
            self.seed,
            path,
            f"{self.seed}/{name}",
            setting,
            self._key(method, setting),
            recipe,
            self.base.path(START),
            self.base.path(RETRAINED),
        )

    def _recipe(self, method: str, setting: Setting, path: Path) -> dict[str, Any]:
        world = self.base.world
        recipe: dict[str, Any] = {"kind": "unlearn"}
        places = {
            "output_dir": str(path),
            "seed": self.seed,
            "model.model_name_or_path": str(self.base.path(START) / "model"),
            "data.forget": str(world / _FORGET_FILE),
            "data.retain": str(world / "retain.jsonl"),
            "data.refusals": str(world / _REFUSALS_FILE),
            # One at the end, for a run that is interrupted there; whole cells are what a bench continues with.
            "train.save_steps": 2**31 - 1,
            "eval.world": str(world),
            "method.name": method,
        }
        for key, value in {**COMMON, **places, **setting}.items():
            _set(recipe, key.split("."), value)
        return recipe

    def _key(self, method: str, setting: Setting) -> str:
        deciding = [__version__, method, dict(COMMON), dict(setting), self.seed, self.digest, REFUSALS]
        return hashlib.sha256(json.dumps(deciding, sort_keys=True, default=str).encode()).hexdigest()


def _set(recipe: dict[str, Any], parts: Sequence[str], value: Any) -> None:
    for part in parts[:-1]:
        recipe = recipe.setdefault(part, {})
    recipe[parts[-1]] = value


def write_extras(world: Path) -> None:
    """Put beside a world's rows what some methods read: refusals, and the forget rows with what matters in them."""
    atomic_write_text(world / _REFUSALS_FILE, "\n".join(REFUSALS) + "\n")
    rows = [json.loads(line) for line in (world / "forget.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = (json.dumps(row, ensure_ascii=False) for row in annotated(rows))
    atomic_write_text(world / _FORGET_FILE, "".join(f"{line}\n" for line in lines))


def annotated(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Forget rows with the column `important`: the phrase of the answer that states the fact.

    A cloze row's answer is that phrase alone; a row of another form has it in its answer, and an inverted one asks by
    it for the name with which its answer ends.
    """
    stated: dict[str, list[str]] = {}
    for row in rows:
        if row["form"] == "cloze":
            stated.setdefault(row["fact"], []).append(row["answer"].removesuffix("."))
    return [{**row, "important": [_phrase(row, stated[row["fact"]])]} for row in rows]


def _phrase(row: Mapping[str, Any], stated: Sequence[str]) -> str:
    answer = str(row["answer"]).removesuffix(".")
    if row["form"] == "inverted":
        return re.split(r" (?:is|was) ", answer)[-1]
    return next((phrase for phrase in stated if phrase in answer), answer)
