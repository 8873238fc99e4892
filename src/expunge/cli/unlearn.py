"""`expunge unlearn`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import typer

from expunge.cli.launch import NumProcesses, several
from expunge.cli.output import Json, note, number, print_json, table_lines
from expunge.cli.progress import showing
from expunge.cli.recipe import Overrides, Overwrite, Recipe

if TYPE_CHECKING:
    from expunge.train.runner import RunResult
    from expunge.train.sequence import SequenceResult


def unlearn(
    context: typer.Context,
    recipe: Recipe,
    overrides: Overrides = None,
    num_processes: NumProcesses = 1,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Erase the forget set as a recipe says, or each of its requests in order.

    Prints the run directory. A run that was killed resumes when the same command is given again.
    """
    several(context, num_processes)
    from expunge import api

    with showing() as progress:
        result = api.unlearn(recipe, *(overrides or ()), overwrite=overwrite, progress=progress)
    if hasattr(result, "requests"):
        print_sequence(cast("SequenceResult", result), as_json=json)
    else:
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


def print_sequence(result: SequenceResult, *, as_json: bool) -> None:
    """As `print_run`, with what each request erased and what came back."""
    document = result.requests
    note(f"{len(document['resurfaced'])} requests, {result.steps} steps in {result.seconds:.1f} s")
    if as_json:
        print_json({**result._asdict(), "path": str(result.path)})
        return
    for line in sequence_lines(document):
        note(line)
    print_path(str(result.path))
    note(f"next: expunge eval {result.path}")


def sequence_lines(document: Mapping[str, Any]) -> list[str]:
    """The table of `requests.json` as text: extraction strength of each request's rows, and of the retain rows."""
    names = list(document["stages"][0]["scores"])
    header = ("extraction strength of", *(name.replace("_", " ") for name in names))
    rows = [
        (_point(stage["requests_done"]), *(number(stage["scores"][name]["value"]) for name in names))
        for stage in document["stages"]
    ]
    return [*table_lines(header, rows, right=header[1:]), *_resurfacing(document)]


def _point(done: int) -> str:
    return f"after request {done}" if done else "before"


def _resurfacing(document: Mapping[str, Any]) -> list[str]:
    """What rose again after it was asked to be forgotten, by how much, and whether that is more than chance."""
    lines = []
    for name, rise in document["resurfaced"].items():
        if rise["resurfaced"]:
            since, until = (document["stages"][rise[key]]["scores"][name]["value"] for key in ("since", "until"))
            between = f"[{number(rise['low'])}, {number(rise['high'])}]" if rise["low"] is not None else "no interval"
            points = f"{number(since)} after request {rise['since']}, {number(until)} after request {rise['until']}"
            lines.append(f"{name.replace('_', ' ')} rose again by {number(rise['value'])} {between}: {points}")
    if lines or len(document["resurfaced"]) > 1:
        return lines or ["no earlier request rose again beyond chance"]
    return []


def print_path(path: str) -> None:
    """A path alone on stdout, so that a script can read it."""
    typer.echo(path)
