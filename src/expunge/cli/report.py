"""`expunge report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge.cli.output import Json, note, print_json

if TYPE_CHECKING:
    from expunge.report.verdict import Verdict
    from expunge.report.write import Written

Redact = Annotated[bool, typer.Option("--redact", help="Replace the text of forget rows by ids and keyed digests.")]


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="An evaluated run directory.")],
    start: Annotated[Path | None, typer.Option(metavar="RUN", help="The evaluated starting model.")] = None,
    reference: Annotated[Path | None, typer.Option(metavar="RUN", help="The evaluated retrained model.")] = None,
    runs: Annotated[list[Path] | None, typer.Option(metavar="RUN", help="One more run for the plane.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="RUN/report.html unless given.")] = None,
    redact: Redact = False,
    json: Json = False,
) -> None:
    """Write what a run did as one HTML file to hand to someone else.

    Writes the model card beside the weights, too. Needs no model and no torch.
    """
    from expunge.report.write import write_report

    written = write_report(run, start=start, reference=reference, runs=runs or (), out=out, redact=redact)
    if json:
        print_json(_as_json(written))
        return
    typer.echo(str(written.path))
    said = spoken(written.verdict)
    note(said)
    for reason in written.compared.reasons.values():
        if reason not in said:
            note(reason)
    for command in written.verdict.missing:
        note(f"  {command}")


def spoken(verdict: Verdict) -> str:
    """The verdict on one line."""
    return verdict.sentence if verdict.word == "none" else f"{verdict.word}: {verdict.sentence}"


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """The verdict for programs."""
    return {
        "word": verdict.word,
        "sentence": verdict.sentence,
        "checks": [check._asdict() for check in verdict.checks],
        "remarks": list(verdict.remarks),
        "missing": list(verdict.missing),
        "attacks": "none was run",
    }


def _as_json(written: Written) -> dict[str, Any]:
    found = written.compared
    return {
        "path": str(written.path),
        "card": None if written.card is None else str(written.card),
        "run": str(found.this.path),
        "start": None if found.start is None else str(found.start.path),
        "reference": None if found.retrained is None else str(found.retrained.path),
        "verdict": verdict_json(written.verdict),
    }
