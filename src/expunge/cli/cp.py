"""`expunge cp`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expunge.cli.unlearn import print_path


def cp(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A packaged recipe (`expunge ls recipes`).")],
    destination: Annotated[Path, typer.Argument(metavar="[FILE]", help="File or folder to copy it to.")] = Path(),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
) -> None:
    """Copy a packaged recipe out, to edit it."""
    from expunge.catalog import unknown
    from expunge.config.packaged import find_packaged, packaged_recipes
    from expunge.errors import UsageError
    from expunge.runs.store import atomic_write_bytes

    source = find_packaged(recipe)
    if source is None:
        raise unknown("recipe", recipe, [known.name for known in packaged_recipes()])
    target = destination / source.name if destination.is_dir() else destination
    if target.exists() and not overwrite:
        raise UsageError(f"{target} exists", hint="add --overwrite, or name another file")
    atomic_write_bytes(target, source.read_bytes())
    print_path(str(target))
