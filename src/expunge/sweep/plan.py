"""What a sweep is: recipe, space, goal and seed, written down before the first trial so that any worker can join in."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from expunge import __version__
from expunge.config.load import Given, load_recipe
from expunge.errors import DataError, UsageError
from expunge.runs.store import atomic_write_json
from expunge.sweep.goal import Goal, parse_goal
from expunge.sweep.space import Dimension, as_override, parse_space, space_size

SCHEMA = 1
FILE, MEASURED = "sweep.json", "start.json"
"""The sweep itself, and what the evaluation of its starting model gave (`metrics`, `skipped`)."""
START = "start"
"""Folder of the starting model's evaluation."""


class Sweep(NamedTuple):
    """One sweep and the folder it lies in."""

    root: Path
    """Absolute."""
    recipe: str
    """As given, for the command that repeats a trial."""
    overrides: tuple[str, ...]
    """As given, without the space."""
    settings: dict[str, Any]
    """The recipe as written, with the overrides and without space and output directory; its paths are located."""
    space: tuple[Dimension, ...]
    goal: Goal
    trials: int
    seed: int
    """Of the sampler; the recipe's own decides each run."""
    prune: bool
    reference: str | None
    """An evaluated run of the retrained model, for metrics that need it."""
    folder: str
    """The directory the command was given in: what relative paths are looked up from."""

    @property
    def start(self) -> Path:
        """Run directory of the starting model's evaluation."""
        return self.root / START

    @property
    def exhaustive(self) -> bool:
        """Whether every combination is tried, each once."""
        return space_size(self.space) <= self.trials

    def path(self, number: int) -> Path:
        """Run directory of a trial."""
        return self.root / trial_name(number)

    def changes(self, params: Mapping[str, Any]) -> list[str]:
        """The overrides that make a recipe the trial with these values."""
        return [as_override(dimension.key, params[dimension.key]) for dimension in self.space]

    def given(self, params: Mapping[str, Any], *more: str) -> Given:
        """The recipe of a trial.

        Raises:
            UsageError: a key that no recipe has, or a value that it cannot take.
        """
        return load_recipe(self.settings, (*self.changes(params), *more))

    def write(self) -> None:
        """Put it down as `sweep.json`."""
        atomic_write_json(self.root / FILE, {"schema": SCHEMA, "version": __version__, **self._plain()})

    def require_same(self, other: Sweep) -> None:
        """Refuse to go on with `other` where this one lies.

        Raises:
            UsageError: naming what differs; only the number of trials may.
        """
        ours, theirs = self._plain(), other._plain()
        # The same recipe by another name is the same recipe.
        loose = ("trials", "recipe", "overrides", "folder")
        differing = [key for key in ours if key not in loose and ours[key] != theirs[key]]
        if differing:
            told = "; ".join(f"{key}: {_short(ours[key])} -> {_short(theirs[key])}" for key in differing)
            raise UsageError(
                f"{self.root} holds a sweep with other settings: {told}", hint="choose another folder with --out"
            )

    def _plain(self) -> dict[str, Any]:
        found = {name: value for name, value in self._asdict().items() if name != "root"}
        space = {dimension.key: dimension.text for dimension in self.space}
        plain: dict[str, Any] = json.loads(json.dumps({**found, "space": space, "goal": self.goal.to_json()}))
        return plain


def trial_name(number: int) -> str:
    """`trial-0007`."""
    return f"trial-{number:04d}"


def is_sweep(root: Path) -> bool:
    """Whether a sweep lies there."""
    return (root / FILE).is_file()


def read_sweep(root: Path) -> Sweep:
    """The sweep that lies in a folder.

    Raises:
        UsageError: none does, or one of a newer version.
        DataError: its file is damaged.
    """
    path = root.absolute() / FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"no sweep lies in {root}", hint="start one with `expunge sweep RECIPE SPACE...`") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint="put the file back, or start another sweep") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise UsageError(
            f"{path} is not of schema {SCHEMA}, which this expunge ({__version__}) reads",
            hint="carry it on with the version that began it",
        )
    return Sweep(
        root=path.parent,
        recipe=found["recipe"],
        overrides=tuple(found["overrides"]),
        settings=found["settings"],
        space=parse_space(found["space"]),
        goal=parse_goal(**found["goal"]),
        trials=found["trials"],
        seed=found["seed"],
        prune=found["prune"],
        reference=found["reference"],
        folder=found["folder"],
    )


def read_start(sweep: Sweep) -> dict[str, Any]:
    """`MEASURED` as it was written; empty before that."""
    path = sweep.root / MEASURED
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def start_values(sweep: Sweep) -> dict[str, float]:
    """Metric -> value of the starting model."""
    return {name: score["value"] for name, score in read_start(sweep).get("metrics", {}).items()}


def enter(sweep: Sweep) -> None:
    """Look relative paths up from where the sweep was started, where that folder exists on this machine."""
    if Path(sweep.folder).is_dir():
        os.chdir(sweep.folder)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:197]}..."
