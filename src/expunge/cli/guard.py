"""`expunge guard calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from expunge.cli.output import Json, interval, note, number, print_facts, print_json
from expunge.cli.progress import showing

if TYPE_CHECKING:
    from expunge.guards.calibrate import Calibration
    from expunge.guards.record import Statistic
    from expunge.metrics.score import Score

app = typer.Typer(
    help="Make a model refuse what it no longer knows.",
    rich_markup_mode=None,
    no_args_is_help=False,
)


@app.callback()
def guard() -> None:
    """Make a model refuse what it no longer knows."""


@app.command("calibrate")
def calibrate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory, or a model folder with --prompts.")],
    rate: Annotated[float, typer.Option(help="Share of prompts it may refuse wrongly; 0.02 needs 500 of them.")] = 0.02,
    statistic: Annotated[str, typer.Option(help="Whose energy: last, prompt or generated tokens.")] = "last",
    temperature: Annotated[float, typer.Option(help="T of -T logsumexp(z / T).")] = 1.0,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What it should answer; the run's retain rows unless given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split into calibration and test.")] = 0,
    refusal: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="What it says instead; several take turns by prompt.")
    ] = None,
    template: Annotated[str | None, typer.Option(help="A chat template (`expunge ls templates`).")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps; the best one there is unless given.")] = None,
    json: Json = False,
) -> None:
    """Set the guard's threshold on half of the retain prompts, and test it on the rest.

    Writes energy_guard.json beside the model.
    """
    from expunge import api

    with showing() as progress:
        made = api.calibrate_guard(
            run,
            rate=rate,
            # Checked where it is used, with the nearest known name in the message.
            statistic=cast("Statistic", statistic),
            temperature=temperature,
            prompts=prompts,
            seed=seed,
            refusals=refusal or (),
            template=template,
            device=device,
            progress=progress,
        )
    if json:
        print_json(_as_json(made))
        return
    print_facts(_facts(made))
    if made.forget is None:
        note("no forget rows here: what it refuses was not measured")


def _facts(made: Calibration) -> list[tuple[str, str]]:
    from expunge.metrics.guard import percent

    facts = [
        ("guard", str(made.path)),
        ("statistic", f"{made.statistic}, temperature {number(made.temperature)}"),
        ("threshold", f"{number(made.threshold)}: refuses above it"),
        ("calibrated on", f"{made.num_calibration} retain prompts, for {percent(made.rate)} false refusals"),
        ("over-refusal", f"{_rate(made.over_refusal)} other retain prompts"),
    ]
    if made.forget is not None:
        facts += [
            ("refusal", f"{_rate(made.forget.refusal_rate)} forget prompts"),
            ("energy AUROC", _value(made.forget.auroc)),
            ("energy FPR95", _value(made.forget.fpr95)),
        ]
    return facts


def _rate(score: Score) -> str:
    return f"{_value(score)} of {score.n}"


def _value(score: Score) -> str:
    return f"{number(score.value)} {interval(score)}".rstrip()


def _as_json(made: Calibration) -> dict[str, Any]:
    forget = None if made.forget is None else {k: v.to_json() for k, v in made.forget._asdict().items()}
    return {
        **made._asdict(),
        "path": str(made.path),
        "over_refusal": made.over_refusal.to_json(),
        "forget": forget,
    }
