"""One recipe from start to finish: load, prepare, build tables, train, save; or take up where a killed run stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from expunge.config.load import Given, resolved
from expunge.config.schema import Recipe, TrainSection
from expunge.data.prepare import Prepared, provenance, template_of
from expunge.data.stream import PairedStream
from expunge.data.template import Template
from expunge.errors import ExpungeError, UsageError
from expunge.methods.base import Needs
from expunge.models.adapters import describe_adapters, numbers, trainable
from expunge.models.budget import tuned_budget
from expunge.models.fingerprint import digest_json, model_digest, tokenizer_digest
from expunge.models.load import (
    compute_dtype,
    context_length,
    padding_id,
    pick_device,
    require_vocabulary,
    vocabulary_size,
)
from expunge.models.processes import Processes, join, own_device, processes
from expunge.models.reference_table import ReferenceTable, describe
from expunge.models.save import save_model
from expunge.runs.lock import exclusive
from expunge.runs.run import WATCH, Run
from expunge.train.checkpoint import Checkpoints
from expunge.train.deepspeed import asked_for
from expunge.train.engine import Engine
from expunge.train.inheritance import read_inheritance, write_inheritance
from expunge.train.layout import require_layout, together
from expunge.train.out_of_memory import explaining_memory
from expunge.train.points import Points, points_of
from expunge.train.sharding import copy_trained, shard
from expunge.train.start import as_started, freeze, prepare_for, select, start_model
from expunge.train.supply import RunSupply
from expunge.train.watch import require_watchable, watcher_of
from expunge.train.workshop import RunWorkshop
from expunge.train.wrappers.select import Wrapped

Progress = Callable[[dict[str, Any]], None]

EARLY = "early"
"""Why a finished run stopped before its last step."""


class RunResult(NamedTuple):
    """A finished run."""

    path: Path
    steps: int
    resumed_from: int | None
    """Step of the checkpoint it continued from; None for a run of one go."""
    seconds: float
    last: dict[str, Any]
    """The last step's event."""


class Part(NamedTuple):
    """A run's place in a sequence of requests; it leaves behind what masks hand on."""

    before: Path | None
    """The run directory of the request before it; None for the first."""


def run_recipe(
    given: Given, *, overwrite: bool = False, progress: Progress | None = None, part: Part | None = None
) -> RunResult:
    """Carry a recipe out.

    Args:
        given: the recipe as written and as resolved.
        overwrite: replace a run that lies in the output directory.
        progress: receives every event, also those that go to events.jsonl.
        part: where it is one request of a sequence (`expunge.train.sequence`).

    Raises:
        ExpungeError: what any part refuses; see the parts.
        KeyboardInterrupt: stopped between two steps; the same command resumes.
    """
    started = time.perf_counter()
    recipe, wrapped = select(given.recipe)
    method = wrapped.method
    path = output_dir(recipe, given.origin)
    settings = settings_of(recipe, wrapped)
    device = own_device(pick_device(recipe.device))
    where = join(device)
    require_layout(recipe, wrapped, where)
    require_watchable(recipe, method)
    where.require_same("the recipe", digest_json(settings))
    show = progress if progress and where.main else (lambda event: None)
    for text in given.notes:
        show({"event": "note", "text": text})
    clock = _Clock()
    with together(), exclusive(path), explaining_memory(recipe, device, processes=where.world):
        resumes = where.first(lambda: Run.check(path, kind=recipe.kind, resolved=settings, overwrite=overwrite))
        if resumes:
            show({"event": "note", "text": f"{path} holds this run unfinished: resuming it"})
        # Only a recipe that can start is written down, and only then does it replace a run that lay there.
        start = _start(recipe, method.needs(), device)
        points = points_of(
            recipe,
            path / WATCH,
            model=start.model,
            tokenizer=start.tokenizer,
            template=start.template,
            progress=show,
        )
        clock.lap("load")
        run = open_run(where, path, kind=recipe.kind, given=given.given, resolved=settings, overwrite=overwrite)
        with stopping(run), together():
            result = _carry_out(run, recipe, wrapped, start, points, clock, show, part)
    return result._replace(seconds=time.perf_counter() - started)


def open_run(where: Processes, path: Path, **settings: Any) -> Run:
    """`Run.create` by the main process; the others hold the same run and write nothing."""
    run = where.first(lambda: Run.create(path, **settings))
    run.writes = where.main
    return run


def settings_of(recipe: Recipe, wrapped: Wrapped) -> dict[str, Any]:
    """Every setting of a selected recipe, with the defaults of its method and wrappers."""
    return resolved(recipe) | {
        "method": {"name": wrapped.method.name, **wrapped.method.model_dump(mode="json")},
        "wrappers": list(wrapped.named),
    }


@contextmanager
def stopping(run: Run) -> Iterator[None]:
    """Write down why the run stopped, if it does."""
    try:
        yield
    except BaseException as error:
        first_line = next(iter(str(error).splitlines()), "")
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {first_line}"
        # A full disk may refuse this note as well; what stopped the run must not be lost over it.
        with suppress(ExpungeError):
            run.update(status="stopped", stop_reason=reason)
        raise


def output_dir(recipe: Recipe, origin: str) -> Path:
    """Where the run goes: the recipe's `output_dir`, else `runs/<recipe>-<method or kind>`."""
    if recipe.output_dir is not None:
        return recipe.output_dir
    stem = Path(origin).stem if origin else "run"
    name = str(recipe.method.get("name", recipe.kind))
    return Path("runs") / (stem if name in stem else f"{stem}-{name}")


class _Start(NamedTuple):
    """What a run has in hand before its first step."""

    tokenizer: Any
    model: Any
    revision: str | None
    template: Template
    prepared: Prepared
    pad_id: int
    device: torch.device


def _carry_out(
    run: Run,
    recipe: Recipe,
    wrapped: Wrapped,
    start: _Start,
    points: Points | None,
    clock: _Clock,
    progress: Progress,
    part: Part | None,
) -> RunResult:
    method = wrapped.method
    for role, loaded in start.prepared.loaded.items():
        text = f"{role}: {len(loaded.examples)} rows of {loaded.format} from {loaded.origin}"
        progress({"event": "note", "text": f"{text}, template {start.template.name}"})
    for text in start.prepared.warnings:
        progress({"event": "warning", "text": text})
    where = processes()
    facts = _facts(recipe, start)
    for what, digest in _digests(facts).items():
        where.require_same(what, digest)
    progress({"event": "note", "text": _numbers(facts)})
    if recipe.model.use_peft:
        progress({"event": "note", "text": describe_adapters(start.model)})
    if run.resumed:
        _require_same(run, facts)
    anchor = method.needs().roles[0]
    # Measured once: processes that cut a step differently would wait for each other for ever.
    budget = run.manifest.token_budget or where.first(lambda: _budget(recipe.train, start, anchor))
    run.update(**facts, token_budget=budget)
    for key, value in method.train_settings.items():
        progress({"event": "note", "text": f"{method.name} decides train.{key}: {value}"})
    starting = {name: p.detach().clone() for name, p in trainable(start.model).items()} if method.keeps_start else {}
    workshop = _workshop(recipe, start, budget, progress)
    workshop.record = run.append
    if part is not None and part.before is not None:
        workshop.inherited = read_inheritance(part.before)
    supply = RunSupply(
        run.provision_dir,
        method,
        start.prepared,
        workshop,
        model_key=facts["model"]["digest"],
        starting_model=lambda: as_started(start.model, lambda: start_model(recipe, start.device)[1]),
        progress=progress,
        elsewhere=run.tables_dir,
        report=lambda tables: _note_tables(run, tables),
    )
    data = supply.first()
    combine = wrapped.combine.build(workshop, start.model) if wrapped.combine else None
    masks = [mask.build(workshop, start.model) for mask in wrapped.masks]
    freeze(start.model, masks, method.trainable())
    if recipe.train.fsdp:
        shard(start.model)
    clock.lap("references")

    stream = paired_stream(recipe, start.prepared, method.needs())
    engine = Engine(
        start.model,
        method,
        data,
        recipe.train,
        stream=stream,
        total_steps=total_steps(recipe.train, stream),
        token_budget=budget,
        combine=combine,
        masks=masks,
        supply=supply,
        zero3=asked_for("DEEPSPEED"),
    )
    resumed_from, last = _fit(run, engine, recipe, points, progress)
    trained = _whole_model(recipe, engine)
    clock.lap("train")

    def save() -> None:
        with torch.no_grad():
            method.finish(trained, starting)
        if part is not None:
            write_inheritance(run.path, masks)
        save_model(trained, start.tokenizer, run.model_dir)

    where.first(save)
    clock.lap("save")
    run.update(status="finished", timings=clock.timings, stop_reason=EARLY if engine.ended else None)
    return RunResult(run.path, engine.step, resumed_from, 0.0, last)


def _note_tables(run: Run, tables: Mapping[str, ReferenceTable]) -> None:
    """Keep with the run which tables it reads: they are removed with its data."""
    run.update(caches=tuple(sorted({*run.manifest.caches, *(table.name for table in tables.values())})))
    run.append({"event": "references", **{role: describe(table) for role, table in tables.items()}})


def _whole_model(recipe: Recipe, engine: Engine) -> Any:
    """The trained model in one piece, on the main process; None on the others where it is divided among them."""
    if not engine.sharded:
        return engine.model
    model = start_model(recipe, torch.device("cpu"))[1] if engine.processes.main else None
    copy_trained(engine.model, model, engine.trained)
    return model


def _start(recipe: Recipe, needs: Needs, device: torch.device) -> _Start:
    torch.manual_seed(recipe.seed)
    tokenizer, model, revision = start_model(recipe, device)
    template = template_of(recipe.data, tokenizer)
    prepared = prepare_for(recipe, needs, template, context_length(model.config))
    size = vocabulary_size(model)
    for dataset in prepared.datasets.values():
        require_vocabulary(dataset, tokenizer, size=size)
    return _Start(tokenizer, model, revision, template, prepared, padding_id(tokenizer, size=size), device)


def _workshop(recipe: Recipe, start: _Start, budget: int, progress: Progress) -> RunWorkshop:
    return RunWorkshop(
        model=start.model,
        tokenizer=start.tokenizer,
        template=start.template,
        datasets=start.prepared.datasets,
        data=recipe.data,
        train=recipe.train,
        seed=recipe.seed,
        device=start.device,
        pad_id=start.pad_id,
        token_budget=budget,
        context=context_length(start.model.config),
        progress=progress,
    )


def _facts(recipe: Recipe, start: _Start) -> dict[str, Any]:
    """What the manifest keeps of everything the result depends on."""
    return {
        "model": {
            "name": recipe.model.model_name_or_path or "from_scratch",
            "revision": start.revision,
            "digest": model_digest(start.model),
            "tokenizer_digest": tokenizer_digest(start.tokenizer),
            "attention": start.model.config._attn_implementation,
        },
        "template": {
            "name": start.template.name,
            "digest": start.template.digest,
            "date": recipe.data.date_string,
        },
        "data": provenance(start.prepared),
        "dtype": {"weights": numbers(recipe.model), "compute": str(compute_dtype(start.device)).removeprefix("torch.")},
        "device": str(start.device),
        "seeds": {"seed": recipe.seed},
    }


def _numbers(facts: Mapping[str, Any]) -> str:
    """What weights and computation are made of, on one line."""
    dtype, attention = facts["dtype"], facts["model"]["attention"]
    return f"weights {dtype['weights']}, computation {dtype['compute']} on {facts['device']}, attention {attention}"


def _digests(facts: Mapping[str, Any]) -> dict[str, str]:
    """What every process must have found alike, by its name in a message."""
    rows = {f"the {item['role']} rows": item["digest"] for item in facts["data"]}
    return {
        "the starting weights": facts["model"]["digest"],
        "the chat template": facts["template"]["digest"],
        **rows,
    }


def _require_same(run: Run, facts: Mapping[str, Any]) -> None:
    """Refuse to continue a run whose model, template or rows are no longer what they were when it started.

    Raises:
        UsageError: naming what changed; the settings are the same, but going on would mix two experiments.
    """
    before = run.manifest
    changed = []
    if before.model is not None and before.model.digest != facts["model"]["digest"]:
        changed.append(f"the weights of {before.model.name}")
    if before.template is not None and before.template.digest != facts["template"]["digest"]:
        changed.append("the chat template")
    old = {item.role: item.digest for item in before.data}
    changed += [
        f"the {item['role']} rows" for item in facts["data"] if old.get(item["role"], item["digest"]) != item["digest"]
    ]
    if changed:
        raise UsageError(
            f"{run.path} is unfinished and {' and '.join(changed)} changed since it started",
            hint="put back what changed, or start anew with --overwrite",
        )


def _fit(
    run: Run, engine: Engine, recipe: Recipe, points: Points | None, progress: Progress
) -> tuple[int | None, dict[str, Any]]:
    """Train from the newest checkpoint on; its step (None: from the start) and the last event."""

    def emit(event: dict[str, Any]) -> None:
        run.append(event)
        progress(event)

    checkpoints = Checkpoints(run.checkpoints_dir, keep=recipe.train.save_total_limit)
    watcher = watcher_of(run, recipe, points, emit)
    engine.watch = watcher
    resumed_from = checkpoints.load(engine)
    if run.resumed:
        run.append({"event": "resumed", "step": resumed_from or 0})
    if resumed_from is not None:
        progress({"event": "note", "text": f"resumed from step {resumed_from} of {engine.total_steps}"})
    run.update(total_steps=engine.total_steps, steps=resumed_from or 0)
    try:
        if watcher:
            watcher.begin(engine)
        last = engine.fit(emit=emit, checkpoints=checkpoints)
        if watcher:
            watcher.finish(engine, checkpoints)
            run.update(best=watcher.best and watcher.best._asdict())
    finally:
        if watcher:
            watcher.close()
        # On a full disk this fails as well; what stopped the run matters more.
        with suppress(ExpungeError):
            run.update(steps=engine.step)
    steps = [event for event in run.events() if event.get("event") == "step"]
    return resumed_from, last or (steps or [{}])[-1]


def _budget(settings: TrainSection, start: _Start, anchor: str) -> int:
    if settings.token_budget != "auto":
        return int(settings.token_budget)
    return tuned_budget(start.model, start.prepared.datasets[anchor], pad_id=start.pad_id, backward=True)


def paired_stream(recipe: Recipe, prepared: Prepared, needs: Needs) -> PairedStream:
    """Which rows each step of the recipe draws."""
    anchor, *others = needs.roles
    settings = recipe.train
    batch = {anchor: settings.global_batch_size}
    batch |= dict.fromkeys(others, settings.retain_batch_size or settings.global_batch_size)
    sizes = {role: len(prepared.datasets[role].encoded) for role in needs.roles}
    return PairedStream(sizes, anchor=anchor, batch=batch, seed=recipe.seed, draw=recipe.data.draw)


def total_steps(settings: TrainSection, stream: PairedStream) -> int:
    """Optimizer steps of the whole run."""
    if settings.max_steps is not None:
        return settings.max_steps
    return max(1, math.ceil(settings.num_train_epochs * stream.steps_per_epoch))


class _Clock:
    """Seconds per phase."""

    def __init__(self) -> None:
        self.timings: dict[str, float] = {}
        self.since = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.timings[phase] = round(now - self.since, 3)
        self.since = now
