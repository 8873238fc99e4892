"""`expunge runs`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expunge.cli.output import Json, note, print_json, print_table

if TYPE_CHECKING:
    from expunge.runs.index import RunSummary


def runs(
    root: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where to look.")] = Path("runs"),
    json: Json = False,
) -> None:
    """List the runs under a folder."""
    from expunge.errors import UsageError
    from expunge.runs.index import list_runs

    if not root.is_dir():
        raise UsageError(f"there is no folder {root}", hint="name the folder your runs lie in: expunge runs FOLDER")
    found = list_runs(root)
    if json:
        print_json([run._asdict() for run in found])
        return
    headers = ("path", "kind", "status", "steps", "method", "model", "created")
    print_table(headers, [_row(run) for run in found], right=("steps",))
    for run in found:
        if run.problem:
            note(f"unreadable: {run.problem}")


def _row(run: RunSummary) -> tuple[str, ...]:
    steps = "" if run.steps is None else f"{run.steps}/{run.total_steps}" if run.total_steps else str(run.steps)
    return (run.path, run.kind, run.status, steps, run.method or "", run.model or "", run.created)
