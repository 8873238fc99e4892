"""`expunge import`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge.cli.output import Json, note, number, print_json
from expunge.cli.recipe import Overwrite

if TYPE_CHECKING:
    from expunge.evals.logs.store import Imported


def import_log(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The log; for muse also the folder that holds it.")],
    origin: Annotated[str, typer.Option("--from", help="What wrote it: openunlearning, tofu or muse.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder that is written.")],
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Read an evaluation log of other software.

    Writes it as tables that `expunge metrics` reads, also as its --reference. Needs no model and no torch.
    """
    from expunge import api

    found = api.import_log(file, origin=origin, out=out, overwrite=overwrite)
    _explain(found)
    if json:
        print_json(_as_json(found))
        return
    typer.echo(str(found.path))


def _explain(found: Imported) -> None:
    rows = ", ".join(f"{split} {count}" for split, count in found.rows.items())
    note(f"rows: {rows or 'none, aggregates only'}")
    checked = len(found.equal) + len(found.differing)
    if checked:
        note(f"{len(found.equal)} of {checked} aggregates of the log follow from its rows")
    for name, (ours, logged) in found.differing.items():
        note(f"warning: {name} is {number(ours)} by the rows, and {number(logged)} in the log")
    if found.unread:
        note(f"not read: {', '.join(found.unread)}")


def _as_json(found: Imported) -> dict[str, Any]:
    differing = {name: {"rows": ours, "log": logged} for name, (ours, logged) in found.differing.items()}
    return found._asdict() | {"path": str(found.path), "differing": differing}
