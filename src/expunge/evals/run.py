"""`expunge eval`: run a suite's two passes over a model, write the tables, measure."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from expunge.catalog import SUITES
from expunge.config.schema import ModelSection, Recipe
from expunge.data.example import Example
from expunge.data.prepare import template_of
from expunge.data.source import load_examples
from expunge.data.template import Template
from expunge.errors import DataError, UsageError
from expunge.evals.generate import generation_table
from expunge.evals.jobs import plan_jobs
from expunge.evals.recompute import START, Recomputed, Stored, find_comparable, read_spec, recompute
from expunge.evals.suite import Profile, Split, Suite, SuiteData
from expunge.evals.trace import trace
from expunge.models.budget import tuned_budget
from expunge.models.decode import end_ids
from expunge.models.fingerprint import digest_json, model_digest, tokenizer_digest
from expunge.models.load import (
    compute_dtype,
    context_length,
    load_model,
    load_tokenizer,
    padding_id,
    pick_device,
    require_vocabulary,
    vocabulary_size,
)
from expunge.runs.lock import exclusive
from expunge.runs.run import Run
from expunge.runs.store import atomic_file, atomic_write_json, leftovers
from expunge.runs.target import find_target

SCHEMA = 1
TOFU_TOTAL_LENGTH = 200
"""TOFU's own evaluator limits prompt and answer together."""

TRACED = "traced.json"
"""The spec of an evaluation whose trace is written and whose answers are not."""
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
    world: Path | None = None
    forget_split: str | None = None
    template: str | None = None
    limit: int | None = None
    token_budget: int | None = None
    allow_missing: bool = False
    overwrite: bool = False
    device: str | None = None


def evaluate(target: str | Path, options: EvalOptions, *, progress: Progress | None = None) -> Recomputed:
    """Trace and generate (unless these tables are already there), then measure.

    Tables are kept under suite, profile and template; a second call with the same model and rows reuses them.

    Raises:
        ExpungeError: a target, suite, template, row or reference that cannot be used.
    """
    found = find_target(target, options.recipe)
    recipe = found.recipe or Recipe()
    section = recipe.eval
    name = options.suite or section.suite
    device = pick_device(options.device or recipe.device)
    named = ModelSection(
        model_name_or_path=found.model,
        attn_implementation=recipe.model.attn_implementation,
        trust_remote_code=recipe.model.trust_remote_code,
    )
    loaded = load_model(named, device=device)
    tokenizer = load_tokenizer(found.model, trust_remote_code=named.trust_remote_code)
    template = template_of(recipe.data, tokenizer, name=options.template)
    suite = build_suite(name, recipe, options)
    run = found.run or _bare_run(found.model, options)
    folder = run.eval_dir(name, options.profile, template.digest)
    spec = _spec(suite, template, options, loaded.model, tokenizer, device)
    # Before the passes: they take hours, and the mistake is there already.
    _check_others(options, Stored(folder, spec))
    if options.overwrite or not _matches(folder / "spec.json", spec):
        if options.overwrite:
            (folder / TRACED).unlink(missing_ok=True)
        subject = _Subject(suite, template, loaded.model, tokenizer)
        with exclusive(folder):
            asked = options.token_budget or section.token_budget
            _passes(folder, spec, subject, asked, progress or (lambda event: None))
    elif progress:
        progress({"event": "note", "text": f"tables of the same model and rows are in {folder}: reusing them"})
    measured = recompute(
        folder,
        suite=name,
        profile=options.profile,
        reference=options.reference,
        start=options.start,
        allow_missing=options.allow_missing,
    )
    if found.run is None:
        run.update(status="finished")
    return measured


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
        forget_split=options.forget_split or section.forget_split,
        splits=_load(sources, tofu),
        trained=_load(trained, tofu),
        limit=options.limit or section.limit,
    )
    suite: Suite = SUITES.load(name)(data)
    if options.profile not in suite.profiles:
        raise UsageError(
            f"the suite {name!r} has no profile {options.profile!r}", hint=f"it has: {', '.join(suite.profiles)}"
        )
    return suite


def _load(sources: Mapping[str, Any], tofu: str) -> dict[str, list[Example]] | None:
    found = {role: load_examples(rows, tofu=tofu, role=role).examples for role, rows in sources.items()}
    return found or None


def _check_others(options: EvalOptions, ours: Stored) -> None:
    """Refuse a retrained or a starting run that ours cannot be compared with."""
    if options.reference is not None:
        find_comparable(options.reference, ours)
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


def _spec(
    suite: Suite, template: Template, options: EvalOptions, model: Any, tokenizer: Any, device: Any
) -> dict[str, Any]:
    """What the tables depend on; equal specs mean equal tables."""
    return {
        "schema": SCHEMA,
        "suite": suite.name,
        "profile": options.profile,
        "options": dict(suite.options or {}),
        "template": {"name": template.name, "digest": template.digest},
        "splits": {split.name: _split_spec(split) for split in suite.splits},
        "max_new_tokens": suite.max_new_tokens,
        "total_length": TOFU_TOTAL_LENGTH if options.profile == "tofu" else None,
        "model_digest": model_digest(model),
        "tokenizer_digest": tokenizer_digest(tokenizer),
        "dtype": str(compute_dtype(device)).removeprefix("torch."),
        "attention": model.config._attn_implementation,
    }


def _split_spec(split: Split) -> dict[str, Any]:
    rows = [[e.id, e.prompt, e.answer, dict(e.extra)] for e in split.examples]
    return {
        "rows": len(rows),
        "digest": digest_json(rows),
        "variants": list(split.variants),
        "generate": split.generate,
        "stats": split.stats,
    }


def _matches(path: Path, spec: Mapping[str, Any]) -> bool:
    try:
        stored = read_spec(path)
    except (FileNotFoundError, DataError):
        # Nobody can say what such tables hold: they are made again.
        return False
    return bool({key: stored.get(key) for key in spec} == json.loads(json.dumps(spec)))


class _Subject(NamedTuple):
    """What the passes run on."""

    suite: Suite
    template: Template
    model: Any
    tokenizer: Any


def _passes(
    folder: Path, spec: Mapping[str, Any], subject: _Subject, asked: int | Literal["auto"], progress: Progress
) -> None:
    """Write both tables; a trace that an interrupted evaluation of the same spec left is taken up."""
    # The spec goes first and comes back last: tables without it are taken for unfinished.
    for path in (folder / "spec.json", *leftovers(folder)):
        path.unlink(missing_ok=True)
    pad_id = padding_id(subject.tokenizer, size=vocabulary_size(subject.model))
    if _matches(folder / TRACED, spec):
        progress({"event": "note", "text": f"{folder} holds the trace of this evaluation: only answers are generated"})
    else:
        _trace(folder, spec, subject, asked, pad_id, progress)
    started = time.perf_counter()
    generated, tokens = generation_table(
        subject.model,
        subject.suite,
        subject.template,
        subject.tokenizer,
        end_ids=end_ids(subject.model, subject.template),
        pad_id=pad_id,
        total_length=spec["total_length"],
        progress=progress,
    )
    _write_table(folder / "generations.parquet", generated)
    cost = {"generate_tokens": tokens, "generate_s": round(time.perf_counter() - started, 2)}
    traced = read_spec(folder / TRACED)
    atomic_write_json(folder / "spec.json", {**traced, "cost": {**traced["cost"], **cost}})
    (folder / TRACED).unlink()


def _trace(
    folder: Path,
    spec: Mapping[str, Any],
    subject: _Subject,
    asked: int | Literal["auto"],
    pad_id: int,
    progress: Progress,
) -> None:
    started = time.perf_counter()
    model = subject.model
    (folder / TRACED).unlink(missing_ok=True)
    plan = plan_jobs(subject.suite, subject.template, max_length=context_length(model.config) or 1 << 30)
    require_vocabulary(plan.dataset, subject.tokenizer, size=vocabulary_size(model))
    budget = tuned_budget(model, plan.dataset, pad_id=pad_id, backward=False) if asked == "auto" else int(asked)
    traced = trace(model, plan, pad_id=pad_id, token_budget=budget, progress=progress)
    _write_table(folder / "trace.parquet", traced.table)
    cost = {
        "trace_tokens": traced.tokens,
        "trace_s": round(time.perf_counter() - started, 2),
        "token_budget": budget,
    }
    atomic_write_json(folder / TRACED, {**spec, "cost": cost})


def _write_table(path: Path, table: pa.Table) -> None:
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
