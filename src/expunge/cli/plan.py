"""`expunge plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from expunge.cli.output import Json, note, print_facts, print_json, size
from expunge.cli.recipe import Overrides, Recipe

if TYPE_CHECKING:
    from expunge.train.planning.plan import Plan

Device = Annotated[
    str | None, typer.Option(help="What to plan for, here or not: cpu, cuda, mps, or a GPU such as h100.")
]
Memory = Annotated[str | None, typer.Option(help="Its memory, e.g. 24GB; its own unless given.")]
NumProcesses = Annotated[int, typer.Option("--num-processes", min=1, help="Processes that carry the run out.")]
TokensPerS = Annotated[
    float | None, typer.Option("--tokens-per-s", min=0.001, help="Throughput over all processes, where you know it.")
]


def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    device: Device = None,
    memory: Memory = None,
    num_processes: NumProcesses = 1,
    tokens_per_s: TokensPerS = None,
    json: Json = False,
) -> None:
    """Say what a recipe needs and whether it fits, without loading weights."""
    from expunge import api

    found = api.plan(
        recipe,
        *(overrides or ()),
        device=device,
        memory=memory,
        num_processes=num_processes,
        tokens_per_s=tokens_per_s,
    )
    if json:
        print_json(found.to_json())
        return
    print_facts([*_run(found), *_cost(found)])
    for text in found.warnings:
        note(f"warning: {text}")


def _run(found: Plan) -> list[tuple[str, str]]:
    rows = " + ".join(f"{count} {role}" for role, count in found.batch.items())
    trained = "" if found.trained == found.parameters else f", {found.trained:,} trained"
    many = f" x {found.processes}" * (found.processes > 1)
    return [
        ("model", f"{found.model}, {found.parameters:,} parameters{trained}"),
        ("method", found.method),
        ("data", ", ".join(f"{count} {role}" for role, count in found.rows.items())),
        ("steps", f"{found.steps} ({found.steps_per_epoch} per epoch)"),
        ("batch", f"{rows} rows, {found.tokens_per_step:,} tokens in {found.micro_batches} micro-batches"),
        ("token budget", f"{found.token_budget}{' (assumed; the run measures it)' * found.token_budget_assumed}"),
        ("precision", f"{found.weights_dtype} weights, {found.compute_dtype} computation on {found.device}{many}"),
    ]


def _cost(found: Plan) -> list[tuple[str, str]]:
    phase = next(name for name, memory in found.phases._asdict().items() if memory == found.memory)
    parts = ", ".join(f"{name} {size(value)}" for name, value in found.memory._asdict().items() if value)
    each = " on each device" * (found.processes > 1)
    facts = [
        ("memory", f"{size(found.memory.total)}{each} at its peak ({phase})"),
        ("", parts),
        ("reference", size(found.reference_bytes) if found.reference_bytes else "none"),
        ("fits", _fits(found)),
    ]
    facts += [
        ("" if place else "instead", f"{knob.setting}: {size(knob.memory)}{' (fits)' * bool(knob.fits)}")
        for place, knob in enumerate(found.knobs)
    ]
    time = found.time
    if time.seconds is None or time.tokens_per_s is None:
        return [*facts, ("time", time.source)]
    asking = f", {_duration(time.tables)} of it for the reference" if time.tables else ""
    return [
        *facts,
        ("time", f"about {_duration(time.seconds)}{asking}"),
        ("speed", _speed(time.tokens_per_s, time.source)),
    ]


def _fits(found: Plan) -> str:
    if found.available is None:
        return f"unknown: needs {size(found.needed)} with everything around it; say --memory 24GB"
    answer = "yes" if found.fits else "no"
    return f"{answer}: needs {size(found.needed)} with everything around it, of {size(found.available)}"


def _speed(tokens_per_s: float, source: str) -> str:
    return f"{tokens_per_s:,.0f} tokens/s, {source}"


def _duration(seconds: float | None) -> str:
    """`45 s`, `12 min`, `3.5 h`, `2.1 days`."""
    value = seconds or 0.0
    for unit, length in (("s", 60.0), ("min", 60.0), ("h", 24.0)):
        if value < 1.5 * length:
            return f"{value:.0f} {unit}" if unit == "s" and value >= 1 else f"{value:.2g} {unit}"
        value /= length
    return f"{value:.2g} days"
