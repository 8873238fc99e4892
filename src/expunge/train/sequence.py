"""Removal requests one after the other: each a run of its own, from the model the one before it left.

After every request the rows of every request and the retain rows are asked again, so that one table says what each
request erased, what it cost, and what came back.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from expunge.config.load import Given
from expunge.config.requests import request_recipes
from expunge.config.schema import Recipe
from expunge.data.encode import Dataset
from expunge.data.overlap import repeated
from expunge.data.prepare import prepare, template_of
from expunge.data.source import Loaded
from expunge.errors import DataError, UsageError
from expunge.evals.requests import first_rows, row_strengths
from expunge.metrics.ragged import Array
from expunge.metrics.resurfacing import Rise, largest_rise, stage_score
from expunge.models.budget import tuned_budget
from expunge.models.load import context_length, load_model, loading, padding_id, pick_device, vocabulary_size
from expunge.models.processes import join, own_device, processes
from expunge.runs.lock import exclusive
from expunge.runs.manifest import DataInfo, Manifest, load_manifest
from expunge.runs.run import Run, differing, resume_key
from expunge.runs.store import atomic_write_json, sync_files
from expunge.train.layout import together
from expunge.train.runner import Part, open_run, output_dir, run_recipe, settings_of, stopping
from expunge.train.start import prepare_for, select, start_model

SCHEMA = 1
RETAIN = "retain"

Progress = Callable[[dict[str, Any]], None]
Strengths = Callable[..., Array]


class SequenceResult(NamedTuple):
    """A finished sequence."""

    path: Path
    steps: int
    """Of all requests together."""
    redone: tuple[int, ...]
    """Requests that ran or went on in this call; those finished before were left as they were."""
    seconds: float
    requests: dict[str, Any]
    """`requests.json` without its per-row numbers."""


def run_sequence(
    given: Given,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    strengths: Strengths = row_strengths,
) -> SequenceResult:
    """Carry the requests of a recipe out in order, or go on where a killed call stopped.

    Args:
        given: a recipe with `data.requests`.
        overwrite: replace a sequence that lies in the output directory.
        progress: receives every event.
        strengths: measures rows, as `expunge.evals.requests.row_strengths` does.

    Raises:
        ExpungeError: what any request's run refuses; rows of any request that cannot be used, before the first starts.
        KeyboardInterrupt: stopped between two steps; the same command goes on.
    """
    started = time.perf_counter()
    recipe, wrapped = select(given.recipe)
    path = output_dir(recipe, given.origin)
    where = join(own_device(pick_device(recipe.device)))
    show = progress if progress and where.main else (lambda event: None)
    parts = request_recipes(given.recipe, path)
    settings = settings_of(recipe, wrapped)
    with together(), exclusive(path):
        resumes = where.first(lambda: Run.check(path, kind=recipe.kind, resolved=settings, overwrite=overwrite))
        if resumes:
            show({"event": "note", "text": f"{path} holds this sequence unfinished: going on"})
        watch, model = _watch(recipe, parts, strengths, show)
        run = open_run(where, path, kind=recipe.kind, given=given.given, resolved=settings, overwrite=overwrite)
        with stopping(run), together():
            stages = where.first(partial(_begun, run, watch, model))
            # The requests' runs load their own.
            del model
            stages, redone = _carry_out(run, given, parts, watch, stages, show)
            document = watch.document(stages)
            steps = where.first(lambda: _finish(run, parts, document))
    return SequenceResult(path, steps, redone, time.perf_counter() - started, without_rows(document))


def without_rows(document: Mapping[str, Any]) -> dict[str, Any]:
    """`requests.json` without the numbers of single rows."""
    stages = [{key: value for key, value in stage.items() if key != "rows"} for stage in document["stages"]]
    return {**document, "stages": stages}


Stage = dict[str, Array]
"""Rows' name (`request_1`, ..., `retain`) -> extraction strength of each row, at one point of the sequence."""


@dataclass(frozen=True)
class _Watch:
    """The rows that are asked at every point of the sequence."""

    recipe: Recipe
    sources: tuple[str, ...]
    datasets: dict[str, Dataset]
    """`request_1`, ... and `retain`."""
    digests: dict[str, str]
    """Of the rows as they are given: recognises a sequence whose data changed."""
    pad_id: int
    strengths: Strengths
    progress: Progress

    def measure(self, model: Any) -> Stage:
        """Ask a model, which must be in evaluation mode."""
        asked = self.recipe.eval.token_budget
        largest = max(self.datasets.values(), key=lambda dataset: int(dataset.lengths().max()))
        budget = tuned_budget(model, largest, pad_id=self.pad_id, backward=False) if asked == "auto" else int(asked)
        return {
            name: self.strengths(model, dataset, pad_id=self.pad_id, token_budget=budget, progress=self.progress)
            for name, dataset in self.datasets.items()
        }

    def groups(self, name: str) -> list[str | None]:
        """Person of each row."""
        return [example.group for example in self.datasets[name].examples]

    def document(self, stages: Sequence[Stage]) -> dict[str, Any]:
        """What `requests.json` holds."""
        return {
            "schema": SCHEMA,
            "metric": "extraction_strength",
            "rows": {name: len(dataset.encoded) for name, dataset in self.datasets.items()},
            "sources": dict(zip(self.datasets, self.sources, strict=False)),
            "digests": self.digests,
            "stages": [self._stage(number, stage) for number, stage in enumerate(stages)],
            "resurfaced": self._resurfaced(stages),
        }

    def _stage(self, number: int, stage: Stage) -> dict[str, Any]:
        scores = {
            name: stage_score(
                values, self.groups(name), label=name, direction="higher" if name == RETAIN else "lower"
            ).to_json()
            for name, values in stage.items()
        }
        rows = {name: [None if np.isnan(value) else float(value) for value in values] for name, values in stage.items()}
        return {"requests_done": number, "scores": scores, "rows": rows}

    def _resurfaced(self, stages: Sequence[Stage]) -> dict[str, Any]:
        found = {}
        for number, name in enumerate(self.datasets, 1):
            if name == RETAIN or number >= len(stages):
                continue
            own = [stage[name] for stage in stages[number:]]
            rise: Rise = largest_rise(own, self.groups(name), first=number, label=name)
            found[name] = {**rise._asdict(), "resurfaced": rise.resurfaced}
        return found


def _watch(recipe: Recipe, parts: Sequence[Recipe], strengths: Strengths, progress: Progress) -> tuple[_Watch, Any]:
    """Load and encode the rows of every request as its run will: a mistake in the last one shows before the first.

    Returns:
        The rows to ask, and the starting model.

    Raises:
        ExpungeError: a model or rows that cannot be used.
    """
    tokenizer, model, _ = start_model(parts[0], own_device(pick_device(recipe.device)))
    template, context = template_of(recipe.data, tokenizer), context_length(model.config)
    datasets: dict[str, Dataset] = {}
    loaded: dict[str, Loaded] = {}
    for number, part in enumerate(parts, 1):
        chosen, wrapped = select(part)
        prepared = prepare_for(chosen, wrapped.method.needs(), template, context)
        datasets[f"request_{number}"], loaded[f"request_{number}"] = (
            prepared.datasets["forget"],
            prepared.loaded["forget"],
        )
    _warn_of_repetition(loaded, progress)
    if recipe.data.retain:
        kept = prepare(recipe.data, template, context=context, roles=(RETAIN,))
        datasets[RETAIN], loaded[RETAIN] = kept.datasets[RETAIN], kept.loaded[RETAIN]
    limit = recipe.eval.limit
    watch = _Watch(
        recipe=recipe,
        sources=tuple(item.origin for item in loaded.values()),
        datasets={name: first_rows(dataset, limit) for name, dataset in datasets.items()},
        digests={name: item.digest for name, item in loaded.items()},
        pad_id=padding_id(tokenizer, size=vocabulary_size(model)),
        strengths=strengths,
        progress=progress,
    )
    return watch, model


def _warn_of_repetition(loaded: Mapping[str, Loaded], progress: Progress) -> None:
    names = list(loaded)
    for place, name in enumerate(names):
        for before in names[:place]:
            if count := repeated(loaded[name].examples, loaded[before].examples):
                text = f"{count} rows of {name} are also rows of {before}: whatever one does shows in both"
                progress({"event": "warning", "text": text})


def _carry_out(
    run: Run, given: Given, parts: Sequence[Recipe], watch: _Watch, stages: list[Stage], progress: Progress
) -> tuple[list[Stage], tuple[int, ...]]:
    """Every request's run, and what was measured before the first and after each."""
    where, redone = processes(), list[int]()
    for number, part in enumerate(parts, 1):
        folder = Path(str(part.output_dir))
        if where.first(partial(_is_finished, folder, part, watch, number)):
            progress({"event": "note", "text": f"request {number} of {len(parts)} is finished: {folder}"})
        else:
            progress({"event": "note", "text": f"request {number} of {len(parts)}: {folder}"})
            # A request that goes on was measured by nothing that is still true.
            del stages[number:]
            before = Path(str(parts[number - 2].output_dir)) if number > 1 else None
            own = {**given.given, **part.model_dump(mode="json", include={"model", "data", "output_dir"})}
            done = run_recipe(Given(part, own, "", given.notes), progress=progress, part=Part(before))
            run.append({"event": "request", "number": number, "path": folder.name, "steps": done.steps})
            redone.append(number)
        if len(stages) <= number:
            stages.append(where.first(partial(_reached, run, watch, stages, part, folder)))
    return stages, tuple(redone)


def _begun(run: Run, watch: _Watch, model: Any) -> list[Stage]:
    """What an interrupted call has measured, else the starting model."""
    return _measured(run.path, watch) or [_noted(run, watch, [], model)]


def _reached(run: Run, watch: _Watch, before: Sequence[Stage], part: Recipe, folder: Path) -> Stage:
    """Measure the model that a request left."""
    device = own_device(pick_device(watch.recipe.device))
    return _noted(run, watch, before, load_model(loading(part.model, str(folder / "model")), device=device).model)


def _noted(run: Run, watch: _Watch, before: Sequence[Stage], model: Any) -> Stage:
    """Measure a model and write the table so far."""
    stage = watch.measure(model)
    atomic_write_json(_requests_path(run.path), watch.document([*before, stage]))
    return stage


def _requests_path(folder: Path) -> Path:
    return folder / "requests.json"


def _measured(folder: Path, watch: _Watch) -> list[Stage]:
    """The points that an interrupted call has measured.

    Raises:
        UsageError: rows that changed since.
        DataError: a file that cannot be read.
    """
    path = _requests_path(folder)
    if not path.exists():
        return []
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name, digest in watch.digests.items() if stored["digests"].get(name) != digest]
        stages = [
            {name: np.array(rows, dtype=np.float64) for name, rows in stage["rows"].items()}
            for stage in stored["stages"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint="delete it: what it holds is measured again") from error
    if changed:
        raise UsageError(
            f"{folder} is unfinished and the rows of {' and '.join(changed)} changed since it started",
            hint="put back what changed, or start anew with --overwrite",
        )
    return stages


def _is_finished(folder: Path, part: Recipe, watch: _Watch, number: int) -> bool:
    """Whether a request's run is there, whole and of these settings and rows.

    Raises:
        UsageError: it is finished, but of other settings or rows, or its model is gone.
    """
    if not (folder / "manifest.json").exists():
        return False
    manifest = load_manifest(folder)
    if manifest.status != "finished":
        return False
    settings = settings_of(*select(part))
    wrong = [] if manifest.resume_key == resume_key(settings) else differing(manifest.resolved, settings)
    wrong += [] if (folder / "model").is_dir() else ["its model is gone"]
    rows = {item.role: item.digest for item in manifest.data}
    wrong += [] if rows.get("forget") == watch.digests[f"request_{number}"] else ["its forget rows changed"]
    if wrong:
        raise UsageError(
            f"{folder} is finished and does not belong to this sequence any more: {'; '.join(wrong)}",
            hint="put back what changed, or start the sequence anew with --overwrite",
        )
    return True


def _finish(run: Run, parts: Sequence[Recipe], document: Mapping[str, Any]) -> int:
    """Write the table, and give the sequence the last request's model and the facts of all; the steps in all."""
    atomic_write_json(_requests_path(run.path), document)
    folders = [Path(str(part.output_dir)) for part in parts]
    manifests = [load_manifest(folder) for folder in folders]
    _place(folders[-1] / "model", run.model_dir)
    first = manifests[0]
    steps = sum(manifest.steps or 0 for manifest in manifests)
    run.update(
        model=first.model and first.model.model_dump(mode="json"),
        template=first.template and first.template.model_dump(mode="json"),
        dtype=first.dtype and first.dtype.model_dump(mode="json"),
        data=[item.model_dump(mode="json") for item in _rows(manifests)],
        device=first.device,
        seeds=first.seeds,
        token_budget=first.token_budget,
        steps=steps,
        total_steps=steps,
        caches=sorted({name for manifest in manifests for name in manifest.caches}),
        timings={f"request_{n}": round(sum(m.timings.values()), 3) for n, m in enumerate(manifests, 1)},
        status="finished",
        stop_reason=None,
    )
    return steps


def _rows(manifests: Sequence[Manifest]) -> list[DataInfo]:
    """The rows of every request, and everything else once."""
    forget = [item for manifest in manifests for item in manifest.data if item.role == "forget"]
    return forget + [item for item in manifests[0].data if item.role != "forget"]


def _place(model: Path, target: Path) -> None:
    """The same files under another name, without their bytes twice where the disk can."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(model, partial, copy_function=_link)
    sync_files(partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.replace(target)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
