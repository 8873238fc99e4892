"""What a command is pointed at: a run directory, a model folder or a Hub id."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from expunge.config.schema import Recipe
from expunge.errors import UsageError
from expunge.runs.run import Run


class Target(NamedTuple):
    """A model to look at, and the run it came from where there is one."""

    model: str
    """Folder or Hub id."""
    run: Run | None
    recipe: Recipe | None
    """The run's own settings: template, TOFU place, splits."""


def find_target(target: str | Path, recipe: Recipe | None = None) -> Target:
    """A run directory, or a model folder or Hub id.

    Args:
        target: which of them.
        recipe: settings to measure by, in place of the run's own; what a bare model has none of.

    Raises:
        UsageError: a run that has no model yet.
    """
    path = Path(target)
    if not (path / "manifest.json").exists():
        return Target(str(target), None, recipe)
    run = Run.open(path)
    if not run.model_dir.exists():
        finished = run.manifest.status == "finished"
        raise UsageError(
            f"{path} is {run.manifest.status} and has no model{'' if finished else ' yet'}",
            hint="the folder `model` is gone: put it back, or start the run anew with --overwrite"
            if finished
            else "repeat its command: it resumes and finishes",
        )
    if recipe is None and run.manifest.kind in ("unlearn", "train"):
        recipe = Recipe.model_validate(dict(run.manifest.resolved))
    return Target(str(run.model_dir), run, recipe)
