"""`expunge train`."""

from __future__ import annotations

import typer

from expunge.cli.launch import NumProcesses, several
from expunge.cli.output import Json
from expunge.cli.progress import showing
from expunge.cli.recipe import Overrides, Overwrite, Recipe
from expunge.cli.unlearn import print_run


def train(
    context: typer.Context,
    recipe: Recipe,
    overrides: Overrides = None,
    num_processes: NumProcesses = 1,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Fine-tune a starting model or a retrained model."""
    several(context, num_processes)
    from expunge import api

    with showing() as progress:
        result = api.train(recipe, *(overrides or ()), overwrite=overwrite, progress=progress)
    print_run(result, as_json=json)
