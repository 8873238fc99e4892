"""`expunge unlearn`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from expunge.cli.output import Json, note, print_json
from expunge.cli.progress import showing
from expunge.cli.recipe import Overrides, Overwrite, Recipe

if TYPE_CHECKING:
    from expunge.train.runner import RunResult


def unlearn(recipe: Recipe, overrides: Overrides = None, overwrite: Overwrite = False, json: Json = False) -> None:
    """Erase the forget set as a recipe says.

    Prints the run directory. A run that was killed resumes when the same command is given again.
    """
    from expunge import api

    with showing() as progress:
        result = api.unlearn(recipe, *(overrides or ()), overwrite=overwrite, progress=progress)
    print_run(result, as_json=json)


def print_run(result: RunResult, *, as_json: bool) -> None:
    """The run directory on stdout (all of the result with `as_json`), what was done on stderr."""
    resumed = "" if result.resumed_from is None else f", resumed from step {result.resumed_from}"
    note(f"{result.steps} steps in {result.seconds:.1f} s{resumed}")
    if as_json:
        print_json({**result._asdict(), "path": str(result.path)})
        return
    print_path(str(result.path))
    note(f"next: expunge eval {result.path}")


def print_path(path: str) -> None:
    """A path alone on stdout, so that a script can read it."""
    typer.echo(path)
