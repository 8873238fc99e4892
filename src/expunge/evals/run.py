"""`expunge eval`: run a suite's two passes over a model, from disk or in memory, write the tables, measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from expunge.catalog import SUITES
from expunge.config.schema import EvalSection, Recipe
from expunge.data.example import Example
from expunge.data.prepare import template_of
from expunge.data.source import load_examples
from expunge.data.template import Template, build_template
from expunge.errors import HubError, UsageError
from expunge.evals.further import all_stored, further_passes, run_further, sampling_of
from expunge.evals.passes import SPEC, TRACED, Subject, matches, run_passes, spec_of
from expunge.evals.recompute import START, Recomputed, Stored, find_comparable, find_reference, recompute
from expunge.evals.suite import Profile, Suite, SuiteData
from expunge.models.fingerprint import digest_json
from expunge.models.load import load_model, load_tokenizer, loading, pick_device
from expunge.models.processes import join, own_device, processes
from expunge.runs.lock import exclusive
from expunge.runs.run import Run
from expunge.runs.target import find_target

SPLIT_SOURCES = ("forget", "retain", "holdout", "real_authors", "world_facts")

Progress = Callable[[dict[str, Any]], None]


class EvalOptions(NamedTuple):
    """What the command line or the API may set; None: the recipe's, then the default."""

    recipe: Recipe | None = None
    """In place of the run's own; gives a bare model its rows, template and TOFU place."""
    suite: str | None = None
    profile: Profile = "canonical"
    reference: Path | None = None
    out: Path | None = None
    start: Path | None = None
    tofu: str | None = None
    source: str | None = None
    world: Path | None = None
    num_fewshot: int | None = None
    tasks: tuple[str, ...] = ()
    tasks_path: Path | None = None
    forget_split: str | None = None
    template: str | None = None
    limit: int | None = None
    samples: int | None = None
    temperatures: tuple[float, ...] = ()
    top_ps: tuple[float, ...] = ()
    gradnorm: bool = False
    gibberish: str | None = None
    perplexity_model: str | None = None
    token_budget: int | None = None
    allow_missing: bool = False
    overwrite: bool = False
    device: str | None = None


def evaluate(target: str | Path, options: EvalOptions, *, progress: Progress | None = None) -> Recomputed:
    """Trace and generate (unless these tables are already there), then measure.

    Tables are kept under suite, profile and template; a second call with the same model and rows reuses them. Those of
    fewer rows than the recipe's (`limit`) lie in a folder of their own: a quick look replaces no evaluation. Several
    processes divide the passes; the main one writes, and all of them return the same.

    Raises:
        ExpungeError: a target, suite, template, row or reference that cannot be used.
    """
    found = find_target(target, options.recipe)
    recipe = found.recipe or Recipe()
    device = own_device(pick_device(options.device or recipe.device))
    where = join(device)
    loaded = load_model(loading(recipe.model, found.model), device=device)
    tokenizer = load_tokenizer(found.model, trust_remote_code=recipe.model.trust_remote_code)
    suite = build_suite(options.suite or recipe.eval.suite, recipe, options)
    template = suite_template(suite, recipe, tokenizer, name=options.template)
    run = found.run or where.first(lambda: _bare_run(found.model, options))
    measured = evaluate_live(
        loaded.model,
        tokenizer,
        template,
        recipe,
        folder=run.eval_dir(suite.name, options.profile, template.digest, first=_other_limit(recipe, options)),
        options=options,
        suite=suite,
        progress=progress if where.main else None,
    )
    if found.run is None and where.main:
        run.update(status="finished")
    return measured


def evaluate_live(
    model: Any,
    tokenizer: Any,
    template: Template,
    recipe: Recipe,
    *,
    folder: Path,
    options: EvalOptions | None = None,
    suite: Suite | None = None,
    lockstep: bool = False,
    progress: Progress | None = None,
) -> Recomputed:
    """Measure a model as it is in memory: what `evaluate` does with one it has loaded, and a run with its own.

    Called by every process together. Weights, gradients and random numbers stay as they are.

    Args:
        model: in evaluation mode, on its device.
        tokenizer: its tokenizer.
        template: how a conversation becomes tokens.
        recipe: where rows come from, and the budget of a forward pass.
        folder: where tables and `metrics.json` go; tables of the same model and rows that lie there are reused.
        options: in place of the recipe's settings; `out` is not read.
        suite: what is measured; built from recipe and options unless given.
        lockstep: the model is divided among the processes (`train.fsdp`), so that forward passes are collective: every
            process then runs every text, and the token budget has to be a number. Otherwise they share the texts out.
        progress: receives one dict per event.

    Returns:
        Scores by name, what was skipped and why, and where the tables lie; the same on every process.

    Raises:
        ExpungeError: a suite, row or reference that cannot be used.
        DataError: the processes hold different models or rows.
    """
    options = options or EvalOptions()
    suite = suite or build_suite(options.suite or recipe.eval.suite, recipe, options)
    show, where = progress or (lambda event: None), processes()
    subject = Subject(suite, template, model, tokenizer, lockstep, recipe.eval.temperatures)
    spec = spec_of(subject, options.profile)
    further = further_passes(_with_options(recipe.eval, options), subject)
    asked = {**spec, **{each.key: each.spec for each in further}}
    where.require_same("what is evaluated: the model, its template or its rows", digest_json(asked))
    # Before the passes: they take hours, and the mistake is there already.
    where.first(lambda: _check_others(options, Stored(folder, asked)))
    if options.overwrite or not where.first(lambda: matches(folder / SPEC, spec)):
        with exclusive(folder):
            if options.overwrite and where.main:
                (folder / TRACED).unlink(missing_ok=True)
            run_passes(
                folder, spec, subject, token_budget=options.token_budget or recipe.eval.token_budget, progress=show
            )
    else:
        show({"event": "note", "text": f"tables of the same model and rows are in {folder}: reusing them"})
    if not where.first(lambda: all_stored(folder, further)):
        with exclusive(folder):
            run_further(folder, further, progress=show)
    return where.first(
        lambda: recompute(
            folder,
            suite=suite.name,
            profile=options.profile,
            reference=options.reference,
            start=options.start,
            allow_missing=options.allow_missing,
        )
    )


def _other_limit(recipe: Recipe, options: EvalOptions) -> int | None:
    """A limit on the rows that is not the recipe's own."""
    return options.limit if options.limit != recipe.eval.limit else None


def build_suite(name: str, recipe: Recipe, options: EvalOptions) -> Suite:
    """The suite with its rows: those `eval` names, else the recipe's own forget and retain rows, else the benchmark's.

    Raises:
        ExpungeError: rows that cannot be read or that the suite cannot use.
    """
    section, tofu = recipe.eval, options.tofu or recipe.data.tofu
    sources = {role: getattr(section, role) for role in SPLIT_SOURCES if getattr(section, role)}
    trained = {}
    if not sources and not any(source.path.startswith("tofu:") for source in recipe.data.erased):
        own = {"forget": recipe.data.erased, "retain": recipe.data.retain}
        trained = {role: rows for role, rows in own.items() if rows}
    data = SuiteData(
        tofu=tofu,
        world=options.world or section.world,
        num_fewshot=section.num_fewshot if options.num_fewshot is None else options.num_fewshot,
        tasks=options.tasks or section.tasks,
        tasks_path=options.tasks_path or section.tasks_path,
        forget_split=options.forget_split or section.forget_split,
        splits=_load(sources, tofu),
        trained=_load(trained, tofu),
        limit=options.limit or section.limit,
        source=options.source or section.source,
        profile=options.profile,
    )
    try:
        suite: Suite = SUITES.load(name)(data)
    except HubError as error:
        option = "--tofu" if name == "tofu" else "--source"
        raise HubError(error.message, hint=f"check the network; {option} DIR names a local copy") from error
    if options.profile not in suite.profiles:
        raise UsageError(
            f"the suite {name!r} has no profile {options.profile!r}", hint=f"it has: {', '.join(suite.profiles)}"
        )
    return suite


def suite_template(suite: Suite, recipe: Recipe, tokenizer: Any, *, name: str | None = None) -> Template:
    """How a suite is asked: by the template called `name`, else the one the suite insists on, else the recipe's.

    The recipe's system prompt and date are no part of a template that a suite insists on.
    """
    if name is None and suite.template is not None:
        return build_template(suite.template, tokenizer)
    return template_of(recipe.data, tokenizer, name=name)


def _with_options(section: EvalSection, options: EvalOptions) -> EvalSection:
    """The recipe's further passes, or those that the command asks for."""
    sampling = sampling_of(
        section.sampling, samples=options.samples, temperatures=options.temperatures, top_ps=options.top_ps
    )
    asked = {
        "sampling": sampling,
        "gradnorm": section.gradnorm or options.gradnorm,
        "gibberish": options.gibberish or section.gibberish,
        "perplexity_model": options.perplexity_model or section.perplexity_model,
    }
    return section.model_copy(update=asked)


def _load(sources: Mapping[str, Any], tofu: str) -> dict[str, list[Example]] | None:
    found = {role: load_examples(rows, tofu=tofu, role=role).examples for role, rows in sources.items()}
    return found or None


def _check_others(options: EvalOptions, ours: Stored) -> None:
    """Refuse a retrained or a starting run that ours cannot be compared with."""
    if options.reference is not None:
        find_reference(options.reference, ours, profile=options.profile)
    if options.start is not None:
        find_comparable(options.start, ours, who=START)


def _bare_run(model: str, options: EvalOptions) -> Run:
    """A run directory of its own for a model that is not a run."""
    path = options.out or Path("runs") / f"eval-{Path(model).name}"
    given = {"model": model}
    if (path / "manifest.json").exists():
        run = Run.open(path)
        if run.manifest.kind != "eval" or run.manifest.given != given:
            raise UsageError(f"{path} holds another run", hint="choose another folder with --out")
        return run
    return Run.create(path, kind="eval", given=given, resolved=given, overwrite=options.overwrite)
