"""expunge from Python: what the command line calls, in a few lines of your own.

from expunge import api
run = api.unlearn("recipe.yaml", "method.name=npo")
scores = api.evaluate(run.path, suite="tofu", reference="runs/retrained").scores
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.config.load import Given, load_recipe
from expunge.config.schema import Recipe
from expunge.errors import UsageError
from expunge.runs.rank import rank

if TYPE_CHECKING:
    from expunge.evals.logs.store import Imported
    from expunge.evals.recompute import Recomputed as Evaluation
    from expunge.evals.suite import Profile
    from expunge.guards.ask import Answer
    from expunge.guards.calibrate import Calibration
    from expunge.guards.record import Statistic
    from expunge.integrations.hub import Pushed
    from expunge.train.inspect import Validation
    from expunge.train.planning.plan import Plan
    from expunge.train.runner import RunResult
    from expunge.train.sequence import SequenceResult

RecipeLike = str | Path | Mapping[str, Any] | Recipe
Progress = Callable[[dict[str, Any]], None]


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


def evaluate(
    target: str | Path,
    *,
    recipe: RecipeLike | None = None,
    suite: str | None = None,
    profile: Profile = "canonical",
    reference: str | Path | None = None,
    start: str | Path | None = None,
    out: str | Path | None = None,
    tofu: str | None = None,
    source: str | Path | None = None,
    world: str | Path | None = None,
    num_fewshot: int | None = None,
    tasks: Sequence[str] = (),
    tasks_path: str | Path | None = None,
    forget_split: str | None = None,
    template: str | None = None,
    limit: int | None = None,
    samples: int | None = None,
    temperatures: Sequence[float] = (),
    top_ps: Sequence[float] = (),
    gradnorm: bool = False,
    gibberish: str | Path | None = None,
    perplexity_model: str | Path | None = None,
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
        start: an evaluated run of the starting model, for metrics that say what changed; unless said, the run that
            an unlearned model's manifest names, where it was evaluated on the same rows.
        out: run directory for a model that is not a run.
        tofu: folder or Hub id of TOFU.
        source: folder or Hub id of the rows, for every suite but `tofu` and `world`.
        world: folder of `expunge world build`, for the suite `world`.
        num_fewshot: answered questions before each one, for the suites `mmlu` and `harness`.
        tasks: of lm-evaluation-harness, for the suite `harness`.
        tasks_path: folder of more of them, in its YAML form.
        forget_split: of TOFU `forget01`, `forget05` or `forget10`; of PISTOL the forgotten edges, joined by commas.
        template: named profile instead of the run's template, or of the one that the suite insists on.
        limit: only the first rows of each split.
        samples: answers sampled to each prompt of the forget set, for Leak@k; `eval.sampling` of a recipe says more.
        temperatures: what they are sampled at; 1 unless said.
        top_ps: top-p values; every one goes with every temperature; 1 unless said.
        gradnorm: measure gradients for the gradient norm attack.
        gibberish: a text classifier (folder or Hub id) with a label `clean`, which judges greedy answers.
        perplexity_model: another language model (folder or Hub id), which judges them.
        token_budget: padded tokens of one forward; measured unless said.
        allow_missing: accept metrics over fewer than 99 % of their rows.
        overwrite: run the passes again although their tables are there.
        device: `cpu`, `cuda`, `mps`.
        progress: receives one dict per event.

    Returns:
        Scores by name, what was skipped and why, and where the tables lie; the same on every process, where several
        were started and divided the work.
    """
    from expunge.evals.run import EvalOptions
    from expunge.evals.run import evaluate as run_evaluation
    from expunge.train.layout import together

    options = EvalOptions(
        recipe=None if recipe is None else load_recipe(recipe, ()).recipe,
        suite=suite,
        profile=profile,
        reference=Path(reference) if reference else None,
        start=Path(start) if start else None,
        out=Path(out) if out else None,
        tofu=tofu,
        source=str(source) if source else None,
        world=Path(world) if world else None,
        num_fewshot=num_fewshot,
        tasks=tuple(tasks),
        tasks_path=Path(tasks_path) if tasks_path else None,
        forget_split=forget_split,
        template=template,
        limit=limit,
        samples=samples,
        temperatures=tuple(temperatures),
        top_ps=tuple(top_ps),
        gradnorm=gradnorm,
        gibberish=str(gibberish) if gibberish else None,
        perplexity_model=str(perplexity_model) if perplexity_model else None,
        token_budget=token_budget,
        allow_missing=allow_missing,
        overwrite=overwrite,
        device=device,
    )
    with together():
        return run_evaluation(target, options, progress=progress)


def import_log(file: str | Path, *, origin: str, out: str | Path, overwrite: bool = False) -> Imported:
    """Write an evaluation log of other software as tables that are measured like an evaluation. Needs no torch.

    Args:
        file: OpenUnlearning's `TOFU_EVAL.json` or `MUSE_EVAL.json`, TOFU's `eval_log_aggregated.json`, MUSE's
            `out.json`, `history.json`, `auc.json` or the folder that holds them.
        origin: which software wrote it: `openunlearning`, `tofu` or `muse`.
        out: the folder that is written.
        overwrite: replace an import that lies there.

    Returns:
        The folder, its rows, and which aggregates of the log follow from them.

    Raises:
        UsageError: unknown software, no such file, or `out` holds something.
        DataError: not such a log, a key that is missing, a value that is not a finite number.
    """
    from expunge.evals.logs.store import import_log as read

    return read(Path(file), origin=origin, out=Path(out), overwrite=overwrite)


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


def merge(target: str | Path, *, out: str | Path | None = None, overwrite: bool = False) -> Path:
    """Write the model of a run that trained adapters (`model.use_peft`) as a plain Hugging Face folder, in float32.

    Args:
        target: the run, or an adapter's folder or Hub id.
        out: the folder; `RUN/merged` unless given.
        overwrite: replace what lies there.

    Returns:
        The folder; its guard, where the run has one, lies in it too, unless weights were quantised.

    Raises:
        ExpungeError: no adapter, a folder that exists, a model that cannot be loaded or written.
    """
    from expunge.guards.record import FILE
    from expunge.models.load import loading, pick_device
    from expunge.models.save import save_merged
    from expunge.runs.target import find_target

    found = find_target(target)
    if out is None and found.run is None:
        raise UsageError(f"{target} is no run, so it has no folder of its own", hint="say where to with --out FOLDER")
    folder = Path(out) if out is not None else Path(target) / "merged"
    section = loading((found.recipe or Recipe()).model, found.model)
    # Quantised weights are only read where they were made; a guard that was made in front of them is of no use after.
    quantised = section.load_in_4bit or section.load_in_8bit
    device = pick_device(None if quantised else "cpu")
    save_merged(section, folder, device=device, overwrite=overwrite, beside=() if quantised else (FILE,))
    return folder


def push(
    run: str | Path,
    repo_id: str | None = None,
    *,
    private: bool = True,
    revision: str | None = None,
    merged: bool = False,
    start: str | Path | None = None,
    reference: str | Path | None = None,
    progress: Progress | None = None,
) -> Pushed:
    """Upload a finished run's model and a redacted model card to the Hugging Face Hub, and nothing else of the run.

    Args:
        run: the run directory.
        repo_id: `organisation/name`, or `name` under the account that is logged in; the run's name unless given.
        private: of a repository that has to be made.
        revision: a branch instead of the main one.
        merged: upload the plain model that `merge` made instead of an adapter.
        start: the evaluated starting model, for the card; found from the manifest unless given.
        reference: the evaluated retrained model, likewise.
        progress: told what is uploaded.

    Raises:
        UsageError: a run without a finished model, no login, or a repository that is not ours to fill.
        StoppedError: the Hub cannot be reached; the run stays as it is.
    """
    from expunge.integrations.hub import push as upload

    return upload(
        Path(run),
        repo_id,
        private=private,
        revision=revision,
        merged=merged,
        start=None if start is None else Path(start),
        reference=None if reference is None else Path(reference),
        progress=progress,
    )


def compare(runs: Sequence[str | Path], *, out: str | Path = "comparison.html", redact: bool = False) -> Path:
    """Lay evaluated runs side by side in one HTML file; see `report`.

    Raises:
        UsageError: fewer than two runs, or one that is not evaluated.
        MetricError: runs that were not measured on the same rows with the same template.
    """
    from expunge.report.comparison import write_comparison

    return write_comparison([Path(run) for run in runs], out=Path(out), redact=redact).path


def calibrate_guard(
    target: str | Path,
    *,
    rate: float = 0.02,
    statistic: Statistic = "last",
    temperature: float = 1.0,
    prompts: str | Path | None = None,
    seed: int = 0,
    refusals: Sequence[str] = (),
    template: str | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Calibrate an energy guard for a run, and save it beside the run's model.

    Args:
        target: a run directory, or a model folder (then with `prompts`).
        rate: share of prompts like the calibration prompts that it may refuse, in (0, 1).
        statistic: `last` (energy at the last prompt token), `prompt` (mean over the prompt), `generated` (mean over
            the first four tokens of a draft that is not shown).
        temperature: T > 0 of `E = -T logsumexp(z / T)`.
        prompts: a file of what the model should answer, instead of the run's retain rows.
        seed: of the split into a calibration and a test half.
        refusals: what is said instead of an answer, one of them for each prompt.
        template: named profile instead of the run's template.
        device: `cpu`, `cuda`, `mps`.
        progress: receives one dict per event.

    Returns:
        The threshold, the over-refusal on the test half and, where the target has forget rows, what it refuses.

    Raises:
        UsageError: a setting or a target that cannot be used.
        DataError: rows that cannot be read.
        MetricError: too few prompts for the rate, or an energy that is not a finite number.
    """
    from expunge.guards.calibrate import calibrate_guard as calibrate
    from expunge.guards.energy import DEFAULT_REFUSAL, Settings

    settings = Settings(rate, statistic, temperature, seed, tuple(refusals) or (DEFAULT_REFUSAL,))
    return calibrate(target, settings, prompts=prompts, template=template, device=device, progress=progress)


def ask(
    target: str | Path,
    question: str,
    *,
    guard: bool = False,
    max_new_tokens: int = 200,
    template: str | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> Answer:
    """Put one question to a run, a model folder or a Hub id.

    Args:
        target: which of them.
        question: what a user would type.
        guard: let the saved guard refuse; without it the answer is shown and the guard's opinion only stands beside.
        max_new_tokens: limit on the greedy answer.
        template: named profile instead of the run's template.
        device: `cpu`, `cuda`, `mps`.
        progress: receives one dict per event.

    Returns:
        The answer or refusal, the question's energy, and the threshold and decision of the saved guard.

    Raises:
        UsageError: an empty question, a target without a model, or `guard` without a calibrated guard.
        ModelError: `guard` with one that was calibrated for something else, or is unreadable.
        MetricError: an energy that is not a finite number.
    """
    from expunge.guards.ask import ask as put

    return put(
        target,
        question,
        guard=guard,
        max_new_tokens=max_new_tokens,
        template=template,
        device=device,
        progress=progress,
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
