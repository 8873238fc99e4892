"""`expunge metrics`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expunge.cli.conditions import OPTION, FailIf
from expunge.cli.evaluate import AllowMissing, Start, Suite, profile_name, suite_name
from expunge.cli.output import Json
from expunge.cli.scores import report
from expunge.metrics.conditions import parse_conditions


def metrics(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="An evaluated run directory; several for KLOM.")],
    suite: Suite = None,
    profile: Annotated[str | None, typer.Option(help="The profile evaluated unless given.")] = None,
    reference: Annotated[
        list[Path] | None,
        typer.Option(metavar="RUN", help="An evaluated retrained model to compare with; several for KLOM."),
    ] = None,
    start: Start = None,
    allow_missing: AllowMissing = False,
    fail_if: FailIf = None,
    json: Json = False,
) -> None:
    """Compute the metrics again from a run's tables.

    Several runs of one method and several references give KLOM instead. Needs no model and no torch.
    """
    conditions = parse_conditions(fail_if or (), asked=OPTION)
    references = reference or []
    if len(runs) > 1 or len(references) > 1:
        from expunge.evals.klom import klom_of_runs

        together = klom_of_runs(runs, references, suite=suite_name(suite), allow_missing=allow_missing)
        report(together, conditions, as_json=json)
        return
    from expunge.evals.recompute import recompute

    evaluation = recompute(
        runs[0],
        suite=suite_name(suite),
        profile=None if profile is None else profile_name(profile),
        reference=references[0] if references else None,
        start=None if start is None else Path(start),
        allow_missing=allow_missing,
    )
    report(evaluation, conditions, as_json=json)
