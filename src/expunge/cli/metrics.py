"""`expunge metrics`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expunge.cli.conditions import FailIf, parse_conditions
from expunge.cli.evaluate import AllowMissing, Reference, Start, Suite, profile_name, suite_name
from expunge.cli.output import Json
from expunge.cli.scores import report


def metrics(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="An evaluated run directory.")],
    suite: Suite = None,
    profile: Annotated[str | None, typer.Option(help="The profile evaluated unless given.")] = None,
    reference: Reference = None,
    start: Start = None,
    allow_missing: AllowMissing = False,
    fail_if: FailIf = None,
    json: Json = False,
) -> None:
    """Compute the metrics again from a run's tables.

    Needs no model and no torch.
    """
    conditions = parse_conditions(fail_if)
    from expunge.evals.recompute import recompute

    evaluation = recompute(
        run,
        suite=suite_name(suite),
        profile=None if profile is None else profile_name(profile),
        reference=None if reference is None else Path(reference),
        start=None if start is None else Path(start),
        allow_missing=allow_missing,
    )
    report(evaluation, conditions, as_json=json)
