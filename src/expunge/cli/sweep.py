"""`expunge sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expunge.cli.output import Json, note, number, print_json, print_table
from expunge.cli.progress import showing
from expunge.errors import UsageError

if TYPE_CHECKING:
    from expunge.sweep.summary import Summary, TrialResult

Recipe = Annotated[
    str | None,
    typer.Argument(metavar="RECIPE|DIR", help="A recipe to sweep over, or a sweep's folder to look at."),
]
Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=DISTRIBUTION|KEY=VALUE]...",
        help="What to search, e.g. train.learning_rate=loguniform(1e-6,1e-4) method.name=choice(npo,simnpo) "
        "method.beta=uniform(0.05,1) train.num_train_epochs=int(2,10); anything else is an override.",
    ),
]


def sweep(
    recipe: Recipe = None,
    arguments: Arguments = None,
    trials: Annotated[int, typer.Option(min=1, help="How many, in all.")] = 20,
    workers: Annotated[int, typer.Option(min=1, metavar="K", help="Processes on this machine.")] = 1,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the sweep; runs/sweep-<recipe> unless given.")
    ] = None,
    minimise: Annotated[
        list[str] | None,
        typer.Option(
            "--minimise",
            "--minimize",
            metavar="METRIC",
            help="What to look for (forget.extraction_strength); several give a Pareto front.",
        ),
    ] = None,
    maximise: Annotated[list[str] | None, typer.Option("--maximise", "--maximize", metavar="METRIC")] = None,
    subject_to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help='What a trial must satisfy, "retain.extraction_strength >= 0.9 * start" unless given; repeatable.',
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what is tried.")] = 0,
    prune: Annotated[bool, typer.Option("--prune", help="Give up hopeless trials (needs train.eval_every).")] = False,
    reference: Annotated[
        Path | None, typer.Option(metavar="RUN", help="An evaluated retrained model, for metrics that need one.")
    ] = None,
    join: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Work on a sweep that was begun elsewhere, or carry it on.")
    ] = None,
    json: Json = False,
) -> None:
    """Search settings of a recipe: forget as much as possible, keep enough.

    Every trial is a run in the sweep's folder. The same command continues an interrupted sweep; with a sweep's folder
    instead of a recipe it is shown as it stands.
    """
    from expunge.sweep import run
    from expunge.sweep.plan import is_sweep

    if (recipe is None) == (join is None):
        raise UsageError("give a recipe, a sweep's folder, or --join DIR", hint="see `expunge sweep --help`")
    with showing() as progress:
        if join is not None:
            found = run.join(join, workers=workers, progress=progress)
        elif recipe is not None and is_sweep(Path(recipe)):
            if arguments:
                raise UsageError(f"{recipe} is a sweep; its space is settled", hint=f"go on with --join {recipe}")
            found = run.look(recipe)
        else:
            found = run.sweep(
                str(recipe),
                arguments or (),
                minimise=minimise or (),
                maximise=maximise or (),
                subject_to=subject_to,
                trials=trials,
                workers=workers,
                out=out,
                seed=seed,
                prune=prune,
                reference=reference,
                progress=progress,
            )
    if json:
        print_json(found.to_json())
    else:
        _print(found)


def _print(found: Summary) -> None:
    from expunge.sweep.progress import plain

    metrics = found.sweep.goal.metrics
    keys = [dimension.key for dimension in found.sweep.space]
    headers = ["trial", *(key.rpartition(".")[2] for key in keys), *metrics, "state", "", "seconds"]
    right = ["trial", *metrics, "seconds"]
    rows = [["start", *("" for _ in keys), *(number(found.start.get(metric)) for metric in metrics), "", "", ""]]
    rows += [
        [
            str(trial.number),
            *(plain(trial.params[key]) if key in trial.params else "" for key in keys),
            *(number(trial.values.get(metric)) for metric in metrics),
            _state(trial),
            _mark(found, trial),
            "" if trial.seconds is None else f"{trial.seconds:.0f}",
        ]
        for trial in found.trials
    ]
    print_table(headers, rows, right=right)
    typer.echo()
    typer.echo(found.sweep.goal.in_words())
    _conclude(found)


def _conclude(found: Summary) -> None:
    best, several = found.best, len(found.sweep.goal.objectives) > 1
    if best is not None:
        typer.echo(f"best: trial {best.number}, {found.sweep.root / 'best.yaml'}")
        typer.echo(found.command(best))
    elif several:
        typer.echo(f"Pareto front: trials {', '.join(str(trial.number) for trial in found.pareto) or 'none'}")
    else:
        typer.echo("no trial satisfies the conditions")
    for trial in found.trials:
        if trial.state == "failed":
            typer.echo(f"failed: trial {trial.number}: {str(trial.reason)[:120]}")
    if not found.finished:
        note(f"unfinished: expunge sweep --join {found.sweep.root}")
    note("these values chose the settings: report on rows that no trial was measured on")


def _state(trial: TrialResult) -> str:
    """`finished`, and what became of the conditions."""
    return "breaks a condition" if trial.feasible is False else trial.state


def _mark(found: Summary, trial: TrialResult) -> str:
    best = found.best is not None and found.best.number == trial.number
    return "best, Pareto" if best and trial.pareto else "best" if best else "Pareto" if trial.pareto else ""
