"""`expunge compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expunge.cli.output import Json, note, print_json
from expunge.cli.report import Redact, spoken, verdict_json


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Evaluated run directories.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write.")] = Path("comparison.html"),
    redact: Redact = False,
    json: Json = False,
) -> None:
    """Lay runs side by side in one HTML file.

    The starting and the retrained model are recognised by their weights, and added where they are at hand.
    """
    from expunge.report.comparison import write_comparison

    written = write_comparison(runs, out=out, redact=redact)
    if json:
        verdicts = {name: verdict_json(verdict) for name, verdict in written.verdicts.items()}
        print_json({"path": str(written.path), "runs": [str(path) for path in runs], "verdicts": verdicts})
        return
    typer.echo(str(written.path))
    for name, verdict in written.verdicts.items():
        note(f"{name}: {spoken(verdict)}")
