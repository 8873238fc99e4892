"""`expunge metrics`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expunge.cli.conditions import OPTION, FailIf
from expunge.cli.evaluate import AllowMissing, Start, Suite, profile_name, suite_name
from expunge.cli.output import Json, note
from expunge.cli.scores import report
from expunge.metrics.conditions import parse_conditions

if TYPE_CHECKING:
    from expunge.evals.klom import RunsMeasured


def metrics(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="An evaluated run; several for KLOM or MUSE's folds.")
    ],
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

    Several runs of one method and several references give KLOM instead, several runs on the suite muse how utility and
    memorisation go from fold to fold. Needs no model and no torch.
    """
    conditions = parse_conditions(fail_if or (), asked=OPTION)
    references = reference or []
    if len(runs) > 1 or len(references) > 1:
        together = _together(runs, references, suite_name(suite), profile, allow_missing=allow_missing)
        report(together, conditions, as_json=json)
        return
    from expunge.evals.recompute import ROWS_ONLY, recompute

    evaluation = recompute(
        runs[0],
        suite=suite_name(suite),
        profile=None if profile is None else profile_name(profile),
        reference=references[0] if references else None,
        start=None if start is None else Path(start),
        allow_missing=allow_missing,
    )
    if (evaluation.reference or {}).get("questions") == ROWS_ONLY:
        note(f"the reference was compared by {ROWS_ONLY}")
    report(evaluation, conditions, as_json=json)


def _together(
    runs: list[Path], references: list[Path], suite: str | None, profile: str | None, *, allow_missing: bool
) -> RunsMeasured:
    """What several runs give: without references and on the suite that has folds, its curves; else KLOM."""
    from expunge.evals import folds
    from expunge.evals.klom import klom_of_runs
    from expunge.evals.recompute import find_evaluation

    chosen = None if profile is None else profile_name(profile)
    if not references and find_evaluation(runs[0], suite=suite, profile=chosen).suite == folds.SUITE:
        return folds.folds_of_runs(runs, profile=chosen, allow_missing=allow_missing)
    return klom_of_runs(runs, references, suite=suite, allow_missing=allow_missing)
