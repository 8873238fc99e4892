"""`expunge plan`."""

from __future__ import annotations

from expunge.cli.output import Json, note, print_facts, print_json, size
from expunge.cli.recipe import Overrides, Recipe


def plan(recipe: Recipe, overrides: Overrides = None, json: Json = False) -> None:
    """Say what a recipe costs, without loading weights."""
    from expunge import api

    found = api.plan(recipe, *(overrides or ()))
    if json:
        print_json(found.to_json())
        return
    rows = " + ".join(f"{count} {role}" for role, count in found.batch.items())
    print_facts(
        [
            ("model", f"{found.model}, {found.parameters:,} parameters"),
            ("method", found.method),
            ("data", ", ".join(f"{count} {role}" for role, count in found.rows.items())),
            ("steps", f"{found.steps} ({found.steps_per_epoch} per epoch)"),
            ("batch", f"{rows} rows, {found.tokens_per_step:,} tokens in {found.micro_batches} micro-batches"),
            ("token budget", f"{found.token_budget}{' (assumed; the run measures it)' * found.token_budget_assumed}"),
            ("precision", f"{found.weights_dtype} weights, {found.compute_dtype} computation on {found.device}"),
            ("memory", f"about {size(found.memory.total)}: {_parts(found.memory._asdict())}"),
            ("reference", size(found.reference_bytes) if found.reference_bytes else "none"),
        ]
    )
    for text in found.warnings:
        note(f"warning: {text}")


def _parts(memory: dict[str, int]) -> str:
    return ", ".join(f"{name} {size(value)}" for name, value in memory.items() if value)
