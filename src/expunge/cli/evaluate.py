"""`expunge eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expunge.cli.conditions import OPTION, FailIf
from expunge.cli.launch import NumProcesses, several
from expunge.cli.output import Json, spelled
from expunge.cli.progress import showing
from expunge.cli.recipe import Overwrite
from expunge.cli.scores import report
from expunge.metrics.conditions import parse_conditions

if TYPE_CHECKING:
    from expunge.evals.suite import Profile

Suite = Annotated[str | None, typer.Option(help="What to measure (`expunge ls suites`); the run's own unless given.")]
ProfileName = Annotated[str, typer.Option(help="canonical, or the published numbers of openunlearning or tofu.")]
Reference = Annotated[str | None, typer.Option(metavar="RUN", help="An evaluated retrained model to compare with.")]
Start = Annotated[str | None, typer.Option(metavar="RUN", help="The evaluated starting model; found unless given.")]
AllowMissing = Annotated[bool, typer.Option("--allow-missing", help="Accept metrics with over 1 % of rows missing.")]
PROFILES: tuple[Profile, ...] = ("canonical", "openunlearning", "tofu")


def evaluate(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A run directory, a model folder or a Hub id.")],
    recipe: Annotated[str | None, typer.Option(help="Measure by this recipe's rows; a run has its own.")] = None,
    suite: Suite = None,
    profile: ProfileName = "canonical",
    reference: Reference = None,
    start: Start = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write; inside a run unless given.")] = None,
    tofu: Annotated[str | None, typer.Option(metavar="PATH", help="Where TOFU lies: a folder or a Hub id.")] = None,
    source: Annotated[
        str | None, typer.Option(metavar="PATH", help="Where another benchmark lies: a folder or a Hub id, #PART.")
    ] = None,
    world: Annotated[Path | None, typer.Option(metavar="DIR", help="A world (`expunge world build`).")] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Answered questions before each one (mmlu).")] = None,
    tasks: Annotated[str | None, typer.Option(metavar="A,B", help="Tasks of the suite harness.")] = None,
    tasks_path: Annotated[Path | None, typer.Option(metavar="DIR", help="More tasks for it, as YAML files.")] = None,
    forget_split: Annotated[
        str | None, typer.Option(help="Of TOFU forget01, forget05, forget10; of PISTOL edges.")
    ] = None,
    template: Annotated[str | None, typer.Option(help="A chat template (`expunge ls templates`).")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows of each split.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Sampled answers to each forget prompt (Leak@k).")] = None,
    temperature: Annotated[
        list[float] | None, typer.Option(help="Temperature of sampled answers, 1 unless given; several are allowed.")
    ] = None,
    top_p: Annotated[
        list[float] | None, typer.Option(help="Top-p of sampled answers, 1 unless given; several are allowed.")
    ] = None,
    gradnorm: Annotated[bool, typer.Option("--gradnorm", help="Measure the gradient norm attack as well.")] = False,
    gibberish: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A classifier that tells greedy answers from gibberish.")
    ] = None,
    perplexity_model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Another language model, for the answers' perplexity.")
    ] = None,
    token_budget: Annotated[int | None, typer.Option(min=1, help="Padded tokens of one forward pass.")] = None,
    allow_missing: AllowMissing = False,
    overwrite: Overwrite = False,
    num_processes: NumProcesses = 1,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps; the best one there is unless given.")] = None,
    fail_if: FailIf = None,
    json: Json = False,
) -> None:
    """Measure what a model still knows and what it kept.

    Writes the tables, prints the scores.
    """
    conditions = parse_conditions(fail_if or (), asked=OPTION)
    several(context, num_processes)
    from expunge import api

    with showing() as progress:
        evaluation = api.evaluate(
            target,
            recipe=recipe,
            suite=suite_name(suite),
            profile=profile_name(profile),
            reference=reference,
            start=start,
            out=out,
            tofu=tofu,
            source=source,
            world=world,
            num_fewshot=num_fewshot,
            tasks=[name.strip() for name in (tasks or "").split(",") if name.strip()],
            tasks_path=tasks_path,
            forget_split=forget_split,
            template=template,
            limit=limit,
            samples=samples,
            temperatures=temperature or (),
            top_ps=top_p or (),
            gradnorm=gradnorm,
            gibberish=gibberish,
            perplexity_model=perplexity_model,
            token_budget=token_budget,
            allow_missing=allow_missing,
            overwrite=overwrite,
            device=device,
            progress=progress,
        )
    report(evaluation, conditions, as_json=json)


def suite_name(name: str | None) -> str | None:
    """The suite as it is catalogued; `-` and `_` are the same."""
    from expunge.catalog import SUITES

    return None if name is None else spelled(name, SUITES.names())


def profile_name(name: str) -> Profile:
    """The profile, checked before anything is loaded.

    Raises:
        UsageError: no such profile.
    """
    from expunge.catalog import unknown

    for known in PROFILES:
        if known == name:
            return known
    raise unknown("profile", name, list(PROFILES))
