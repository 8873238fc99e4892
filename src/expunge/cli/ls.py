"""`expunge ls`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, NamedTuple

import typer

from expunge.cli.output import Json, print_json, print_table


class Row(NamedTuple):
    """One name of a listing."""

    name: str
    summary: str
    direction: str = ""
    """Metrics only: which way is better."""


def ls(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="methods, metrics, suites, recipes or templates.")],
    json: Json = False,
) -> None:
    """List methods, metrics, suites, recipes or templates."""
    from expunge.catalog import unknown

    if kind not in KINDS:
        raise unknown("kind", kind, list(KINDS))
    rows = list(KINDS[kind]())
    columns = ("name", "direction", "summary") if any(row.direction for row in rows) else ("name", "summary")
    if json:
        print_json([{column: getattr(row, column) for column in columns} for row in rows])
        return
    print_table(columns, [tuple(getattr(row, column) for column in columns) for row in rows])


def _methods() -> Iterable[Row]:
    from expunge.catalog import METHODS

    return [Row(entry.name, entry.summary) for entry in METHODS]


def _suites() -> Iterable[Row]:
    from expunge.catalog import SUITES

    return [Row(entry.name, entry.summary) for entry in SUITES]


def _metrics() -> Iterable[Row]:
    from expunge.metrics.registry import METRICS

    return [Row(metric.name, metric.summary, metric.direction) for metric in METRICS]


def _recipes() -> Iterable[Row]:
    from expunge.config.packaged import packaged_recipes

    return [Row(recipe.name, recipe.summary) for recipe in packaged_recipes()]


def _templates() -> Iterable[Row]:
    from expunge.data.template import TEMPLATES

    return [Row(entry.name, entry.summary) for entry in TEMPLATES]


KINDS: dict[str, Callable[[], Iterable[Row]]] = {
    "methods": _methods,
    "metrics": _metrics,
    "suites": _suites,
    "recipes": _recipes,
    "templates": _templates,
}
