"""Arguments that every command on a recipe takes."""

from __future__ import annotations

from typing import Annotated

import typer

Recipe = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a packaged recipe (`expunge ls recipes`).")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, e.g. train.learning_rate=1e-5.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what lies in the output directory.")]
