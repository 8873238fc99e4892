"""Settings and provenance as lists of facts, and the commands that make a run again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

import yaml

from expunge.report.collect import Compared, EvaluatedRun
from expunge.report.numbers import count, plural
from expunge.runs.manifest import DataInfo, Manifest


class Fact(NamedTuple):
    """One line of a list."""

    name: str
    value: str


def settings(run: EvaluatedRun) -> tuple[Fact, ...]:
    """What decided the result: the method with its parameters, and how it was trained."""
    resolved = run.manifest.resolved
    method, train = dict(resolved.get("method") or {}), dict(resolved.get("train") or {})
    if not method:
        return (Fact("kind", run.manifest.kind),)
    facts = [Fact("method", str(method.pop("name", "?")))]
    facts += [Fact(key, _plain(value)) for key, value in method.items() if value is not None]
    steps = "" if run.manifest.steps is None else f" ({plural(run.manifest.steps, 'step')})"
    limit, epochs = train.get("max_steps"), _plain(train.get("num_train_epochs"))
    facts.append(Fact("length", f"{limit} steps" if limit else f"{epochs} epochs{steps}"))
    for key in ("global_batch_size", "optim", "learning_rate", "lr_scheduler_type", "weight_decay", "max_grad_norm"):
        if train.get(key) is not None:
            facts.append(Fact(key, _plain(train[key])))
    return tuple(facts)


def as_yaml(value: Mapping[str, Any]) -> str:
    """A recipe that can be saved and run."""
    return yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True, width=88)


def commands(found: Compared) -> tuple[str, ...]:
    """What to type to make this run, its numbers and this page again, once its settings are saved as recipe.yaml."""
    this = found.this
    spec, run = this.stored.spec, shlex.quote(str(this.path))
    yardstick = f" --reference {shlex.quote(str(found.retrained.path))}" if found.retrained else ""
    profile = "" if this.stored.profile == "canonical" else f" --profile {this.stored.profile}"
    start = f" --start {shlex.quote(str(found.start.path))}" if found.start else ""
    made = (f"expunge {this.manifest.kind} recipe.yaml",) if this.manifest.kind != "eval" else ()
    return (
        *made,
        f"expunge eval {run} --suite {spec['suite']}{profile}{yardstick}",
        f"expunge report {run}{start}{yardstick}",
    )


def provenance(found: Compared) -> tuple[Fact, ...]:
    """Digests, versions, seeds and times of the run and of what it was compared with."""
    this = found.this
    manifest, spec = this.manifest, this.stored.spec
    facts = [Fact("run", str(this.path)), Fact("made", f"{_when(manifest.created)} to {_when(manifest.updated)}")]
    if manifest.model is not None:
        info = manifest.model
        revision = f", revision {info.revision}" if info.revision else ""
        facts.append(Fact("starting weights", f"{info.name}{revision}, SHA-256 {info.digest or '?'}"))
    facts.append(Fact("resulting weights", f"SHA-256 {this.model_digest or '?'}"))
    facts += [Fact(f"{data.role} rows", _data(data)) for data in manifest.data]
    if manifest.template is not None:
        date = f", date {manifest.template.date}" if manifest.template.date else ""
        facts.append(Fact("template", f"{manifest.template.name}{date}, SHA-256 {manifest.template.digest}"))
    facts.append(Fact("evaluation", f"{this.stored.folder.name}: suite {spec['suite']}, profile {spec['profile']}"))
    for who, run in (("starting run", found.start), ("retrained run", found.retrained)):
        if run is not None:
            facts.append(Fact(who, f"{run.path}, weights SHA-256 {run.model_digest or '?'}"))
    return (*facts, *_machine(manifest))


def splits(run: EvaluatedRun) -> tuple[Fact, ...]:
    """The measured rows: split, how many, digest."""
    found = run.stored.spec.get("splits") or {}
    return tuple(Fact(name, f"{plural(int(one.get('rows', 0)), 'row')}, SHA-256 {one.get('digest', '?')}")
                 for name, one in found.items())  # fmt: skip


def _machine(manifest: Manifest) -> list[Fact]:
    facts = [Fact("seeds", ", ".join(f"{name} {seed}" for name, seed in manifest.seeds.items()) or "none recorded")]
    if manifest.dtype is not None:
        facts.append(Fact("numbers", f"weights {manifest.dtype.weights}, computed in {manifest.dtype.compute}"))
    if manifest.device:
        facts.append(Fact("device", manifest.device))
    facts.append(Fact("versions", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())))
    if manifest.timings:
        facts.append(Fact("seconds", ", ".join(f"{name} {value:.0f}" for name, value in manifest.timings.items())))
    return facts


def _data(data: DataInfo) -> str:
    revision = f", revision {data.revision}" if data.revision else ""
    return f"{plural(data.rows, 'row')} ({data.format}) of {data.origin}{revision}, SHA-256 {data.digest}"


def rows_of(run: EvaluatedRun, role: str) -> int | None:
    """How many rows a role had in training; None where the run had no such role."""
    found = [data.rows for data in run.manifest.data if data.role == role]
    return sum(found) if found else None


def told(run: EvaluatedRun) -> str:
    """One sentence about what the run did, in counts and never in text."""
    kind = run.manifest.kind
    model = _place(run.manifest.model.name) if run.manifest.model else "a model"
    if kind == "train":
        return f"This run trained a model on {plural(rows_of(run, 'train') or 0, 'row')}; it did not unlearn."
    if kind == "eval":
        return f"This run only evaluated {model}; it changed nothing."
    kept = rows_of(run, "retain")
    rest = f", keeping {plural(kept, 'row')}" if kept else ", without rows to keep"
    return f"The method {run.method} made {model} forget {plural(rows_of(run, 'forget') or 0, 'row')}{rest}."


def _place(name: str) -> str:
    """A model's name; of an absolute path its end, for where somebody keeps models is nobody's business."""
    path = PurePath(name)
    return "/".join(path.parts[-2:]) if path.is_absolute() else name


def _when(stamp: str) -> str:
    return stamp.replace("T", " ").removesuffix("+00:00") + " UTC" if stamp.endswith("+00:00") else stamp


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return count(value) if isinstance(value, int) and not isinstance(value, bool) else str(value)
