"""`expunge validate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from expunge.cli.output import Json, note, print_json, print_table
from expunge.cli.recipe import Overrides, Recipe

if TYPE_CHECKING:
    from expunge.train.inspect import DatasetView, Validation


def validate(recipe: Recipe, overrides: Overrides = None, json: Json = False) -> None:
    """Check a recipe and its data, and show what is supervised."""
    from expunge import api

    found = api.validate(recipe, *(overrides or ()))
    if json:
        print_json(_as_json(found))
        return
    headers = ("role", "origin", "format", "rows", "tokens", "supervised", "longest")
    rows = [(view.role, view.origin, view.format, *map(str, view[3:7])) for view in found.datasets]
    print_table(headers, rows, right=headers[3:])
    for view in found.datasets:
        typer.echo(f"\n{view.role} {view.example_id}, template {found.template}; [[supervised]]:")
        typer.echo(_marked(view))
    for text in found.warnings:
        note(f"warning: {text}")
    note(f"valid: {found.method}")


def _marked(view: DatasetView) -> str:
    return "".join(f"[[{text}]]" if supervised else text for text, supervised in view.pieces)


def _as_json(found: Validation) -> dict[str, Any]:
    datasets = [{**view._asdict(), "pieces": [piece._asdict() for piece in view.pieces]} for view in found.datasets]
    return {**found._asdict(), "datasets": datasets}
