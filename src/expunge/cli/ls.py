"""`expunge ls`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NamedTuple

import typer

from expunge.cli.output import Json, print_json, print_table


class Row(NamedTuple):
    """One name of a listing."""

    name: str
    summary: str
    more: Mapping[str, str] = {}
    """What the kind's table shows between them."""
    facts: Mapping[str, Any] | None = None
    """What JSON shows instead."""


def ls(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="methods, wrappers, metrics, suites, recipes or templates.")
    ],
    json: Json = False,
) -> None:
    """List methods, wrappers, metrics, suites, recipes or templates."""
    from expunge.catalog import unknown

    if kind not in KINDS:
        raise unknown("kind", kind, list(KINDS))
    rows = list(KINDS[kind]())
    if json:
        print_json([row.facts or {"name": row.name, **row.more, "summary": row.summary} for row in rows])
        return
    headers = ("name", *(rows[0].more if rows else ()), "summary")
    print_table(headers, [(row.name, *row.more.values(), row.summary) for row in rows])


def _methods() -> Iterable[Row]:
    from expunge.cli import ls_facts

    return [
        Row(
            facts["name"],
            facts["summary"] + _experimental(facts),
            {
                "needs": ls_facts.needs_in_words(facts),
                "makes first": ls_facts.makes_in_words(facts),
                "per": facts["granularity"],
                "brings": ", ".join(facts["wrappers"]["brings"]),
            },
            facts,
        )
        for facts in ls_facts.method_facts()
    ]


def _wrappers() -> Iterable[Row]:
    from expunge.cli import ls_facts

    return [
        Row(
            facts["name"],
            facts["summary"] + _experimental(facts),
            {"kind": facts["kind"], "needs": ", ".join(facts["needs"]["roles"])},
            facts,
        )
        for facts in ls_facts.wrapper_facts()
    ]


def _experimental(facts: Mapping[str, Any]) -> str:
    return " [experimental]" if facts["experimental"] else ""


def _suites() -> Iterable[Row]:
    from expunge.cli import ls_measures

    return [
        Row(
            facts["name"],
            facts["summary"],
            {"profiles": ", ".join(facts["profiles"] or ()), "tested on": facts["tested_on"] or ""},
            facts,
        )
        for facts in ls_measures.suite_facts()
    ]


def _metrics() -> Iterable[Row]:
    from expunge.cli import ls_measures

    return [
        Row(
            facts["name"],
            facts["summary"],
            {
                "direction": facts["direction"],
                "ideal": ls_measures.ideal_in_short(facts),
                "suites": ", ".join(facts["suites"]),
            },
            facts,
        )
        for facts in ls_measures.metric_facts()
    ]


def _recipes() -> Iterable[Row]:
    from expunge.config.packaged import packaged_recipes

    return [Row(recipe.name, recipe.summary) for recipe in packaged_recipes()]


def _templates() -> Iterable[Row]:
    from expunge.data.template import TEMPLATES

    return [Row(entry.name, entry.summary) for entry in TEMPLATES]


KINDS: dict[str, Callable[[], Iterable[Row]]] = {
    "methods": _methods,
    "wrappers": _wrappers,
    "metrics": _metrics,
    "suites": _suites,
    "recipes": _recipes,
    "templates": _templates,
}
