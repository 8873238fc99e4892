"""Carrying recipes out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.api.models import Progress, push
from expunge.config.load import Given, load_recipe
from expunge.config.schema import Recipe
from expunge.errors import UsageError
from expunge.runs.rank import rank

if TYPE_CHECKING:
    from expunge.train.inspect import Validation
    from expunge.train.planning.plan import Plan
    from expunge.train.runner import RunResult
    from expunge.train.sequence import SequenceResult

RecipeLike = str | Path | Mapping[str, Any] | Recipe


def unlearn(
    recipe: RecipeLike, *overrides: str, overwrite: bool = False, progress: Progress | None = None
) -> RunResult | SequenceResult:
    """Make a model forget, as the recipe says; one request after the other where it has `data.requests`.

    Args:
        recipe: a YAML file, a packaged recipe's name, a mapping or a `Recipe`.
        overrides: `key=value`, e.g. `"train.learning_rate=1e-5"`.
        overwrite: replace a run that lies in the output directory; without it an unfinished run with the same
            settings resumes and anything else is an error.
        progress: receives one dict per event.

    Returns:
        The run's path and steps, and its last event, or of a sequence what every request erased and what came back;
        `path / "model"` loads with `AutoModelForCausalLM.from_pretrained`.

    Raises:
        ExpungeError: a recipe, model or row that cannot be used.
    """
    given = _given("unlearn", recipe, overrides)
    _check_push(given)
    if given.recipe.data.requests:
        from expunge.train.sequence import run_sequence

        sequence = run_sequence(given, overwrite=overwrite, progress=progress)
        _push(given, sequence.path, progress)
        return sequence
    from expunge.train.runner import run_recipe

    result = run_recipe(given, overwrite=overwrite, progress=progress)
    _push(given, result.path, progress)
    return result


def train(recipe: RecipeLike, *overrides: str, overwrite: bool = False, progress: Progress | None = None) -> RunResult:
    """Fine-tune a target or a retrained model with the same engine (`kind: train`, `data.train`); see `unlearn`."""
    from expunge.train.runner import run_recipe

    given = _given("train", recipe, overrides)
    _check_push(given)
    result = run_recipe(given, overwrite=overwrite, progress=progress)
    _push(given, result.path, progress)
    return result


def validate(recipe: RecipeLike, *overrides: str) -> Validation:
    """Load and encode a recipe's rows without loading weights; one rendered example per role, and every warning."""
    from expunge.train.inspect import validate as inspect_recipe

    return inspect_recipe(load_recipe(recipe, overrides).recipe)


def plan(
    recipe: RecipeLike,
    *overrides: str,
    device: str | None = None,
    memory: str | None = None,
    num_processes: int = 1,
    tokens_per_s: float | None = None,
) -> Plan:
    """Steps, effective batch, peak memory and time of a recipe on this hardware or another, without loading weights.

    Args:
        recipe: a YAML file, the name of a packaged recipe, or a mapping.
        overrides: `key.sub=value`.
        device: `cpu`, `cuda`, `mps` or a GPU by its name (`h100`), here or not; the recipe's unless given.
        memory: of that device, `24GB`; its own unless given. Where the run does not fit, the plan says what would.
        num_processes: how many carry the run out.
        tokens_per_s: real tokens per second over all processes, if known.
    """
    from expunge.train.planning.plan import plan as plan_recipe

    return plan_recipe(
        load_recipe(recipe, overrides).recipe,
        device=device,
        memory=memory,
        num_processes=num_processes,
        tokens_per_s=tokens_per_s,
    )


def _check_push(given: Given) -> None:
    """Refuse before the run what could not be pushed after it."""
    recipe = given.recipe
    if recipe.push_to_hub and rank() == 0:
        from expunge.integrations.hub import require_access

        require_access(_repo_id(given), private=recipe.hub_private_repo)


def _push(given: Given, run: Path, progress: Progress | None) -> None:
    recipe = given.recipe
    if recipe.push_to_hub and rank() == 0:
        pushed = push(run, _repo_id(given), private=recipe.hub_private_repo, progress=progress)
        if progress:
            progress({"event": "note", "text": f"pushed: {pushed.url}"})


def _repo_id(given: Given) -> str:
    from expunge.train.runner import output_dir

    return given.recipe.hub_model_id or output_dir(given.recipe, given.origin).resolve().name


def _given(kind: str, recipe: RecipeLike, overrides: tuple[str, ...]) -> Given:
    given = load_recipe(recipe, overrides)
    if given.recipe.kind != kind:
        other = given.recipe.kind
        raise UsageError(f"this recipe says kind: {other}", hint=f"use `expunge {other}`, or set kind={kind}")
    return given
