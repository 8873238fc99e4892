"""Read evaluated runs, and find and check the two that a run is compared with."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from expunge.errors import DataError, MetricError, UsageError
from expunge.evals.logs.store import VALUES
from expunge.evals.recompute import Stored, find_evaluation, measure_of, read_spec, read_tables
from expunge.evals.suite import Tables
from expunge.metrics.score import Score
from expunge.metrics.view import SplitView, split_names, view_split
from expunge.report.stored import read_metrics
from expunge.runs.manifest import Manifest, load_manifest
from expunge.runs.starting import starting_run
from expunge.runs.store import Event, read_events

Scores = Mapping[str, Score]


@dataclass(frozen=True)
class EvaluatedRun:
    """A finished run and one evaluation of its model."""

    path: Path
    manifest: Manifest
    stored: Stored
    scores: Scores
    skipped: Mapping[str, str]
    """Metric -> why it is absent."""
    reference: Mapping[str, Any] | None
    """The retrained run its metrics were computed with, as metrics.json records it."""
    start: Mapping[str, Any] | None = None
    """The starting run, likewise."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def method(self) -> str | None:
        """Name of the unlearning method; None for a run that trained or only evaluated."""
        found = self.manifest.resolved.get("method")
        return found.get("name") if self.manifest.kind == "unlearn" and isinstance(found, dict) else None

    @property
    def model_digest(self) -> str | None:
        """SHA-256 of the weights that were measured."""
        return self.stored.spec.get("model_digest")

    @cached_property
    def tables(self) -> Tables:
        """The two tables; read when first asked for."""
        return read_tables(self.stored.folder)

    @cached_property
    def splits(self) -> list[str]:
        """Names of the measured splits."""
        return split_names(self.tables.trace)

    @cached_property
    def _views(self) -> dict[str, SplitView]:
        return {}

    def view(self, split: str) -> SplitView:
        """One split as arrays; laid out once."""
        if split not in self._views:
            self._views[split] = view_split(self.tables.trace, self.tables.generations, split)
        return self._views[split]

    @cached_property
    def events(self) -> list[Event]:
        """What the run wrote down while it trained."""
        return read_events(self.path / "events.jsonl")


@dataclass(frozen=True)
class Compared:
    """A run and what it is compared with."""

    this: EvaluatedRun
    start: EvaluatedRun | None
    retrained: EvaluatedRun | None
    others: tuple[EvaluatedRun, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    """`start`, `retrained` -> why it is not there."""
    commands: tuple[str, ...] = ()
    """What to type to have them."""


def open_run(path: Path) -> EvaluatedRun:
    """One finished, evaluated run.

    Args:
        path: a run directory, or one of its evaluation folders where it has several.

    Raises:
        UsageError: not a run, a half-written one, one without an evaluation, or an imported log; names the command
            that mends it.
        DataError: files that cannot be read.
    """
    if (path / VALUES).exists():
        raise UsageError(
            f"{path} is an imported log: there is no run and no model to report on",
            hint=f"measure it with `expunge metrics {path}`, see its rows by `expunge samples {path}`, or compare a run"
            " with it by --reference of `expunge metrics`",
        )
    run, folder = (path.parent.parent, path) if (path / "spec.json").exists() else (path, None)
    if not run.is_dir():
        what = "is a file, not a run directory" if run.exists() else "does not exist"
        raise UsageError(f"{run} {what}", hint="list runs with `expunge runs`")
    manifest = load_manifest(run)
    # What an evaluation of a bare model records is no recipe.
    for key in () if manifest.kind == "eval" else ("model", "data", "method", "train", "eval"):
        if not isinstance(manifest.resolved.get(key) or {}, dict):
            raise DataError(f"{run / 'manifest.json'}: resolved.{key} is not a section", hint="restore the file")
    if manifest.status != "finished":
        raise UsageError(_half_written(run, manifest), hint=_repeat(run, manifest))
    return _loaded(run, manifest, find_evaluation(folder) if folder else _own_evaluation(run, manifest))


def _half_written(run: Path, manifest: Manifest) -> str:
    if manifest.kind == "eval":
        return f"{run} is half-written: its evaluation did not finish"
    where = f"step {manifest.steps or 0} of {manifest.total_steps}" if manifest.total_steps else "before its first step"
    return f"{run} is half-written: it stopped at {where}" if manifest.steps else f"{run} is half-written: no step done"


def _repeat(run: Path, manifest: Manifest) -> str:
    return f"repeat the `expunge {manifest.kind}` command that made it; it continues where it stopped"


def _own_evaluation(run: Path, manifest: Manifest) -> Stored:
    """The evaluation by the run's own suite, where it has several."""
    suite = (manifest.resolved.get("eval") or {}).get("suite")
    has = {read_spec(path).get("suite") for path in run.glob("evals/*/spec.json")}
    return find_evaluation(run, suite=suite if suite in has else None, profile="canonical")


def _loaded(run: Path, manifest: Manifest, stored: Stored) -> EvaluatedRun:
    return EvaluatedRun(run, manifest, stored, *read_metrics(stored.folder, run=run))


def compared(
    path: Path, *, start: Path | None = None, reference: Path | None = None, others: Sequence[Path] = ()
) -> Compared:
    """A run with its starting and its retrained model, each checked to be measured on the same rows.

    Args:
        path: the run the report is about.
        start: the evaluated starting model; unless given, the run whose model the manifest names.
        reference: the evaluated retrained model; unless given, the run beside this one that its metrics were
            computed with, known by the digest of its weights.
        others: more runs for the plane.

    Raises:
        UsageError: a run that was named is not there, half-written or not evaluated.
        MetricError: it was measured with another template or on other rows, or is another starting model.
    """
    this = open_run(path)
    missing = _Missing(this)
    before = _like(this, start, "the starting run") if start else missing.start()
    _check_start(this, before)
    never = _like(this, reference, "the retrained run") if reference else missing.retrained()
    _check_retrained(this, before, never)
    named = tuple(_like(this, other, "the run") for other in others)
    return Compared(
        this=measured_against(this, never, before),
        start=None if before is None else measured_against(before, never),
        retrained=never,
        others=tuple(measured_against(run, never, before) for run in named),
        reasons=missing.reasons,
        commands=tuple(missing.commands),
    )


class _Missing:
    """Finds what was not named, and says what to do where it is not there."""

    def __init__(self, this: EvaluatedRun) -> None:
        self.this = this
        self.reasons: dict[str, str] = {}
        self.commands: list[str] = []

    def start(self) -> EvaluatedRun | None:
        this = self.this
        found = starting_run(this.path)
        if found.run is None:
            self.reasons["start"] = found.reason
            if this.manifest.kind == "unlearn":
                name = this.manifest.model.name if this.manifest.model else "MODEL"
                self.commands += [
                    f"expunge eval {name} --recipe RECIPE --out START",
                    f"expunge report {this.path} --start START",
                ]
            return None
        if not any(found.run.glob("evals/*/spec.json")):
            self.reasons["start"] = f"the starting model's run {found.run} was not evaluated"
            self.commands.append(f"expunge eval {found.run}")
            return None
        return self._fitting("start", found.run, "the starting run")

    def retrained(self) -> EvaluatedRun | None:
        this = self.this
        if this.reference is None:
            self.reasons["retrained"] = "no retrained model was named"
            self.commands += [
                f"expunge eval RETRAINED --suite {this.stored.suite}",
                f"expunge report {this.path} --reference RETRAINED",
            ]
            return None
        if "questions" in this.reference:
            self.reasons["retrained"] = (
                f"the retrained model is known by an imported log alone ({this.reference['evaluation']}): its values"
                " are the ideals, and there is no run of it to show"
            )
            return None
        found = _beside(this, this.reference)
        if found is None:
            digest = str(this.reference.get("model_digest"))[:12]
            self.reasons["retrained"] = f"the retrained model that was compared with ({digest}) is not beside this run"
            self.commands.append(f"expunge report {this.path} --reference RETRAINED")
            return None
        return self._fitting("retrained", found, "the retrained run")

    def _fitting(self, role: str, path: Path, who: str) -> EvaluatedRun | None:
        """A run that was found, not named: where it does not fit, the report says so and goes on without."""
        try:
            found = _like(self.this, path, who)
            if role == "start":
                _check_start(self.this, found)
        except (UsageError, DataError, MetricError) as error:
            self.reasons[role] = error.message
            option = "--start START" if role == "start" else "--reference RETRAINED"
            self.commands.append(f"expunge report {self.this.path} {option}")
            return None
        return found


def _beside(this: EvaluatedRun, reference: Mapping[str, Any]) -> Path | None:
    """The run in the folder of `this` whose evaluation has the recorded digest."""
    digest = reference.get("model_digest")
    for path in sorted(this.path.resolve().parent.glob("*/evals/*/spec.json")):
        if digest and _digest_in(path) == digest and (path.parents[2] / "manifest.json").exists():
            return path.parents[2]
    return None


def _digest_in(spec: Path) -> Any:
    # A damaged run that happens to lie beside this one is none of this report's business.
    with suppress(DataError, FileNotFoundError):
        return read_spec(spec).get("model_digest")
    return None


def _like(ours: EvaluatedRun, path: Path, who: str) -> EvaluatedRun:
    """The evaluation of a run that can be compared with ours.

    Raises:
        UsageError: there is none of our suite.
        MetricError: it was made with another template or on other rows.
    """
    found = open_run(path)
    if found.stored.suite != ours.stored.suite:
        raise UsageError(
            f"{who} {path} was evaluated with suite {found.stored.suite!r}, {ours.path} with {ours.stored.suite!r}",
            hint=f"run `expunge eval {path} --suite {ours.stored.suite}`",
        )
    if found.stored.template != ours.stored.template:
        raise MetricError(
            f"{who} {path} was measured with another template ({_template(found)}; ours is {_template(ours)})",
            hint="evaluate both with the same --template, system prompt and date",
        )
    mine, theirs = _digests(ours), _digests(found)
    if other := [split for split in mine if split in theirs and mine[split] != theirs[split]]:
        raise MetricError(
            f"{who} {path} was measured on other rows than {ours.path} (splits {', '.join(other)})",
            hint="evaluate both with the same rows, splits and --limit",
        )
    if "forget" in mine and "forget" not in theirs:
        raise MetricError(f"{who} {path} has no forget rows", hint="evaluate it on the same rows as this run")
    return found


def _template(run: EvaluatedRun) -> str:
    return f"{run.stored.spec['template'].get('name')} {run.stored.template[:8]}"


def _digests(run: EvaluatedRun) -> dict[str, str]:
    """Split -> digest of its rows."""
    splits = run.stored.spec.get("splits") or {}
    return {name: split["digest"] for name, split in splits.items() if "digest" in split}


def _check_start(this: EvaluatedRun, start: EvaluatedRun | None) -> None:
    info = this.manifest.model
    if start is None or info is None or this.manifest.kind != "unlearn":
        return
    if info.digest and start.model_digest and info.digest != start.model_digest:
        raise MetricError(
            f"the starting run {start.path} holds another model ({start.model_digest[:12]}) than the one"
            f" {this.path} was unlearned from ({info.digest[:12]})",
            hint="name the run that made it with --start, or evaluate it again with --overwrite",
        )


def _check_retrained(this: EvaluatedRun, start: EvaluatedRun | None, retrained: EvaluatedRun | None) -> None:
    """A model that is its own yardstick always reaches it."""
    if retrained is None or this.manifest.kind != "unlearn":
        return
    for other, what in ((this, "the unlearned model itself"), (start, "the starting model")):
        if other is not None and _same(other, retrained):
            raise MetricError(
                f"the retrained run {retrained.path} holds {what}",
                hint="name with --reference a model that was trained without the forget set",
            )


def measured_against(
    run: EvaluatedRun, retrained: EvaluatedRun | None, start: EvaluatedRun | None = None
) -> EvaluatedRun:
    """The same run with scores that know the retrained and the starting model; its files stay as they are."""
    measure = measure_of(run.stored.suite)
    yardstick = None if retrained is None or _same(run, retrained) else retrained
    before = start if run.manifest.kind == "unlearn" and "start" in inspect.signature(measure).parameters else None
    if _knows(run.reference, yardstick) and _knows(run.start, before):
        return run
    options = {} if before is None else {"start": before.tables}
    reference = None if yardstick is None else yardstick.tables
    measured = measure(run.tables, reference=reference, profile=run.stored.profile, allow_missing=False, **options)
    # Without a yardstick at hand, what was measured with one before is the better number.
    scores = {**measured.scores, **run.scores} if yardstick is None else {**run.scores, **measured.scores}
    skipped = {name: why for name, why in {**run.skipped, **measured.skipped}.items() if name not in scores}
    return replace(run, scores=scores, skipped=skipped)


def _same(one: EvaluatedRun, other: EvaluatedRun) -> bool:
    return one.model_digest == other.model_digest


def _knows(recorded: Mapping[str, Any] | None, run: EvaluatedRun | None) -> bool:
    """Whether metrics were computed with this run."""
    return run is None or (recorded or {}).get("model_digest") == run.model_digest


def together(paths: Sequence[Path]) -> tuple[EvaluatedRun, ...]:
    """Runs that can be laid side by side.

    Raises:
        UsageError: fewer than two, one twice, or one that is not evaluated.
        MetricError: measured with another template or on other rows than the first.
    """
    if len(paths) < 2:
        raise UsageError(f"comparing takes two runs or more, found {len(paths)}", hint="expunge compare RUN RUN ...")
    first = open_run(paths[0])
    found = (first, *(_like(first, path, "the run") for path in paths[1:]))
    places = [run.stored.folder.resolve() for run in found]
    if twice := next((path for i, path in enumerate(paths) if places[i] in places[:i]), None):
        raise UsageError(f"{twice} is named twice", hint="name each run once")
    return found


def yardsticks(found: Sequence[EvaluatedRun]) -> tuple[EvaluatedRun, ...]:
    """The starting and the retrained model of the first unlearned run, where they are at hand and not among `found`.

    One that is there and does not fit is left out: nobody named it.
    """
    first = next((run for run in found if run.manifest.kind == "unlearn"), None)
    if first is None:
        return ()
    missing = _Missing(first)
    at_hand = [run for run in (missing.start(), missing.retrained()) if run is not None]
    return tuple(run for run in at_hand if not any(_same(run, other) for other in found))
