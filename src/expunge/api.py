"""expunge from Python: what the command line calls, in a few lines of your own.

from expunge import api
run = api.unlearn("recipe.yaml", "method.name=npo")
scores = api.evaluate(run.path, suite="tofu", reference="runs/retrained").scores
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.config.load import load_recipe
from expunge.config.schema import Recipe
from expunge.errors import UsageError

if TYPE_CHECKING:
    from expunge.evals.recompute import Recomputed as Evaluation
    from expunge.evals.suite import Profile
    from expunge.train.inspect import Validation
    from expunge.train.plan import Plan
    from expunge.train.runner import RunResult

RecipeLike = str | Path | Mapping[str, Any] | Recipe
Progress = Callable[[dict[str, Any]], None]


def unlearn(
    recipe: RecipeLike, *overrides: str, overwrite: bool = False, progress: Progress | None = None
) -> RunResult:
    """Make a model forget, as the recipe says.

    Args:
        recipe: a YAML file, a packaged recipe's name, a mapping or a `Recipe`.
        overrides: `key=value`, e.g. `"train.learning_rate=1e-5"`.
        overwrite: replace a run that lies in the output directory; without it an unfinished run with the same
            settings resumes and anything else is an error.
        progress: receives one dict per event.

    Returns:
        The run's path, steps and last event; `path / "model"` loads with `AutoModelForCausalLM.from_pretrained`.

    Raises:
        ExpungeError: a recipe, model or row that cannot be used.
    """
    return _run("unlearn", recipe, overrides, overwrite, progress)


def train(recipe: RecipeLike, *overrides: str, overwrite: bool = False, progress: Progress | None = None) -> RunResult:
    """Fine-tune a target or a retrained model with the same engine (`kind: train`, `data.train`); see `unlearn`."""
    return _run("train", recipe, overrides, overwrite, progress)


def evaluate(
    target: str | Path,
    *,
    recipe: RecipeLike | None = None,
    suite: str | None = None,
    profile: Profile = "canonical",
    reference: str | Path | None = None,
    out: str | Path | None = None,
    tofu: str | None = None,
    forget_split: str | None = None,
    template: str | None = None,
    limit: int | None = None,
    token_budget: int | None = None,
    allow_missing: bool = False,
    overwrite: bool = False,
    device: str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a run or a model on a suite.

    Args:
        target: a run directory, a model folder or a Hub id.
        recipe: whose rows, template and TOFU place to measure by; a run's own unless said. With it a starting model
            is measured on the rows it is about to forget.
        suite: `expunge ls suites`; the run's own unless said.
        profile: `canonical`, or the published definitions to reproduce (`openunlearning`, `tofu`).
        reference: an evaluated run of the retrained model; forget quality and match-direction ideals need it.
        out: run directory for a model that is not a run.
        tofu: folder or Hub id of TOFU.
        forget_split: `forget01`, `forget05` or `forget10`.
        template: named profile instead of the run's template.
        limit: only the first rows of each split.
        token_budget: padded tokens of one forward; measured unless said.
        allow_missing: accept metrics over fewer than 99 % of their rows.
        overwrite: run the passes again although their tables are there.
        device: `cpu`, `cuda`, `mps`.
        progress: receives one dict per event.

    Returns:
        Scores by name, what was skipped and why, and where the tables lie.
    """
    from expunge.evals.run import EvalOptions
    from expunge.evals.run import evaluate as run_evaluation

    options = EvalOptions(
        recipe=None if recipe is None else load_recipe(recipe, ()).recipe,
        suite=suite,
        profile=profile,
        reference=Path(reference) if reference else None,
        out=Path(out) if out else None,
        tofu=tofu,
        forget_split=forget_split,
        template=template,
        limit=limit,
        token_budget=token_budget,
        allow_missing=allow_missing,
        overwrite=overwrite,
        device=device,
    )
    return run_evaluation(target, options, progress=progress)


def validate(recipe: RecipeLike, *overrides: str) -> Validation:
    """Load and encode a recipe's rows without loading weights; one rendered example per role, and every warning."""
    from expunge.train.inspect import validate as inspect_recipe

    return inspect_recipe(load_recipe(recipe, overrides).recipe)


def plan(recipe: RecipeLike, *overrides: str) -> Plan:
    """Steps, effective batch and memory of a recipe, without loading weights."""
    from expunge.train.plan import plan as plan_recipe

    return plan_recipe(load_recipe(recipe, overrides).recipe)


def report(
    run: str | Path,
    *,
    start: str | Path | None = None,
    reference: str | Path | None = None,
    runs: Sequence[str | Path] = (),
    out: str | Path | None = None,
    redact: bool = False,
) -> Path:
    """Write what a run did as one self-contained HTML file, and the model card beside its weights. Needs no torch.

    Args:
        run: an evaluated run directory.
        start: the evaluated starting model; found from the run's manifest unless given.
        reference: the evaluated retrained model; unless given, the run beside this one that its metrics name.
        runs: more runs for the forget-retain plane.
        out: the file; `report.html` in the run unless given.
        redact: replace the text of forget rows by ids and keyed digests.

    Returns:
        The file.

    Raises:
        UsageError: a run that is not there, half-written or not evaluated.
        MetricError: runs that were not measured on the same rows with the same template.
    """
    from expunge.report.write import write_report

    return write_report(
        Path(run),
        start=None if start is None else Path(start),
        reference=None if reference is None else Path(reference),
        runs=[Path(other) for other in runs],
        out=None if out is None else Path(out),
        redact=redact,
    ).path


def compare(runs: Sequence[str | Path], *, out: str | Path = "comparison.html", redact: bool = False) -> Path:
    """Lay evaluated runs side by side in one HTML file; see `report`.

    Raises:
        UsageError: fewer than two runs, or one that is not evaluated.
        MetricError: runs that were not measured on the same rows with the same template.
    """
    from expunge.report.comparison import write_comparison

    return write_comparison([Path(run) for run in runs], out=Path(out), redact=redact).path


def _run(
    kind: str, recipe: RecipeLike, overrides: tuple[str, ...], overwrite: bool, progress: Progress | None
) -> RunResult:
    from expunge.train.runner import run_recipe

    given = load_recipe(recipe, overrides)
    if given.recipe.kind != kind:
        other = given.recipe.kind
        raise UsageError(f"this recipe says kind: {other}", hint=f"use `expunge {other}`, or set kind={kind}")
    return run_recipe(given, overwrite=overwrite, progress=progress)
