"""Metrics from stored tables: no model, no torch, no rows."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import Any, NamedTuple, cast

from expunge.catalog import SUITES
from expunge.errors import DataError, ExpungeError, MetricError, UsageError
from expunge.evals.answers import (
    check_lengths,
    require_judged_alike,
    require_sampled_alike,
    require_scored_for,
    scored_for,
)
from expunge.evals.logs.measure import LoggedSide, measure_logged, require_profile
from expunge.evals.logs.store import VALUES, read_log
from expunge.evals.suite import NO_START, Measure, Measured, Tables
from expunge.metrics.score import Score
from expunge.runs.starting import starting_run
from expunge.runs.store import atomic_write_json
from expunge.runs.tables import FURTHER, read_table

SCHEMA = 1
REFERENCE = "the reference"
START = "the starting run"
ROWS_ONLY = "row numbers only, because a log holds no questions"
"""How a reference was compared; otherwise by its questions."""
_ROWS = ("digest", "variants")


class Recomputed(NamedTuple):
    """What a suite's metrics gave, and where they are written."""

    path: Path
    """The folder of the tables."""
    suite: str
    profile: str
    scores: dict[str, Score]
    skipped: dict[str, str]
    """Metric name -> why it is absent."""
    reference: dict[str, Any] | None
    """The retrained run: its folder's name, model digest and dtype; beside an imported log, `questions` says how it
    was checked."""
    start: dict[str, Any] | None
    """The starting run, likewise; None where the suite compares with none."""
    metrics_path: Path
    """`metrics.json`; `metrics-<profile>.json` for a profile other than the one that was evaluated."""


class Stored(NamedTuple):
    """One evaluation on disk."""

    folder: Path
    spec: dict[str, Any]

    @property
    def suite(self) -> str:
        """The suite that was run."""
        return str(self.spec["suite"])

    @property
    def profile(self) -> str:
        """The profile it was run for."""
        return str(self.spec["profile"])

    @property
    def template(self) -> str:
        """Digest of the chat template, with its date and system prompt."""
        return str(self.spec["template"]["digest"])

    @property
    def limit(self) -> float:
        """Rows of each split at most; infinity where all were measured."""
        found = (self.spec.get("options") or {}).get("limit", "none")
        return float("inf") if found == "none" else float(found)

    @property
    def logged(self) -> bool:
        """Whether it is the imported log of other software, which has values of rows and no tokens."""
        return "log" in self.spec


class Remeasured(NamedTuple):
    """A stored evaluation, measured again in memory; its files stay as they are."""

    stored: Stored
    profile: str
    tables: Tables
    """Of an imported log only what was asked, answered and true."""
    measured: Measured
    reference: Stored | None
    """The retrained run's evaluation, where one was given."""
    start: Stored | None
    """The starting run's, where the suite compares with one and it was found."""
    questions_compared: bool | None = None
    """Where an imported log is on either side and there is a reference: whether questions were compared, or row numbers
    only."""


def remeasure(
    run: Path,
    *,
    suite: str | None = None,
    profile: str | None = None,
    reference: Path | None = None,
    start: Path | None = None,
    allow_missing: bool = False,
) -> Remeasured:
    """Measure an evaluation again from its tables; writes nothing.

    Args:
        run: a run directory, or one folder of tables: an evaluation, or an imported log.
        suite: which suite's tables, where the run has several.
        profile: whose definitions; the evaluated profile unless said. Profiles share tables.
        reference: the retrained run (or its evaluation folder), measured with the same template on the same rows, or
            an imported log of it.
        start: the run of the starting model (or its evaluation folder), measured likewise; unless said, the run that
            the manifest of an unlearned model names, where it fits. A suite that compares with no start ignores it.
        allow_missing: accept metrics of which less than 99 % of the rows can be measured.

    Raises:
        UsageError: there is no such evaluation, or several that fit; a profile that needs the tokens which an imported
            log does not have; a `start` beside an imported log.
        DataError: tables that cannot be read.
        MetricError: as the suite's `measure`; another template in the reference or in a `start` that was named; an
            imported log of other questions; greedy answers whose length limit or scoring the profile does not share.
    """
    stored = find_evaluation(run, suite=suite, profile=profile)
    profile = profile or stored.profile
    theirs = None if reference is None else find_reference(reference, stored, profile=profile)
    if stored.logged or (theirs is not None and theirs.logged):
        return _remeasure_logged(stored, theirs, profile, start=start)
    tables = _tables_for(stored, profile)
    measure = measure_of(stored.suite)
    before = _find_start(stored, start) if "start" in inspect.signature(measure).parameters else None
    measured = measure(
        tables,
        reference=None if theirs is None else read_tables(theirs.folder),
        profile=profile,
        allow_missing=allow_missing,
        **({} if before is None else {"start": before.tables}),
    )
    if before is not None:
        measured = measured._replace(skipped=before.explain(measured.skipped))
    return Remeasured(stored, profile, tables, measured, theirs, None if before is None else before.stored)


def find_reference(reference: Path, ours: Stored, *, profile: str) -> Stored:
    """The evaluation of the retrained model that ours is compared with.

    Raises:
        UsageError: no such folder, no evaluation of our suite in it, or a profile that an imported log cannot give.
        MetricError: as `find_comparable`.
    """
    if not ours.logged and not (reference / VALUES).exists():
        return find_comparable(reference, ours)
    found = find_evaluation(reference, suite=ours.suite, profile=profile)
    for one in (ours, found):
        if one.logged:
            require_profile(one.suite, profile, logged=one.profile)
    return found


def _remeasure_logged(ours: Stored, retrained: Stored | None, profile: str, *, start: Path | None) -> Remeasured:
    """`remeasure` where one side is, or both are, imported logs."""
    if start is not None:
        raise UsageError("no metric of a log is compared with the starting model", hint="leave out --start")
    if ours.logged:
        require_profile(ours.suite, profile, logged=ours.profile)
    side = _side(ours, profile)
    theirs = None if retrained is None else _side(retrained, profile)
    found = measure_logged(side, reference=theirs, suite=ours.suite, profile=profile)
    tables = side.tables.texts() if isinstance(side, LoggedSide) else side
    return Remeasured(ours, profile, tables, found.measured, retrained, None, found.questions_compared)


def _side(stored: Stored, profile: str) -> LoggedSide | Tables:
    return read_log(stored.folder, stored.spec) if stored.logged else _tables_for(stored, profile)


def _tables_for(stored: Stored, profile: str) -> Tables:
    """The tables of an evaluation, after checking that their answers are such as the profile generates and scores."""
    tables = read_tables(stored.folder)
    check_lengths(stored, tables, profile)
    require_scored_for(stored, profile)
    return tables


def recompute(
    run: Path,
    *,
    suite: str | None = None,
    profile: str | None = None,
    reference: Path | None = None,
    start: Path | None = None,
    allow_missing: bool = False,
) -> Recomputed:
    """Measure an evaluation again from its tables and write its metrics atomically.

    Args:
        run: as `remeasure`.
        suite: as `remeasure`.
        profile: as `remeasure`.
        reference: as `remeasure`.
        start: as `remeasure`.
        allow_missing: as `remeasure`.

    Raises:
        UsageError: as `remeasure`.
        DataError: as `remeasure`.
        MetricError: as `remeasure`.
    """
    again = remeasure(run, suite=suite, profile=profile, reference=reference, start=start, allow_missing=allow_missing)
    stored = again.stored
    own = again.profile == stored.profile
    done = Recomputed(
        path=stored.folder,
        suite=stored.suite,
        profile=again.profile,
        scores=again.measured.scores,
        skipped=again.measured.skipped,
        reference=None if again.reference is None else _describe(again.reference) | _compared_by(again),
        start=None if again.start is None else _describe(again.start),
        metrics_path=stored.folder / ("metrics.json" if own else f"metrics-{again.profile}.json"),
    )
    atomic_write_json(done.metrics_path, _to_json(done))
    return done


def find_evaluation(run: Path, *, suite: str | None = None, profile: str | None = None) -> Stored:
    """The evaluation of a run that fits; one made for `profile` is preferred to another of the same suite, and one of
    all rows to one of the first.

    Raises:
        UsageError: none, or several.
    """
    found = [stored for stored in _evaluations(run) if suite in (None, stored.suite)]
    fitting = [stored for stored in found if stored.profile == profile] or found
    fitting = [stored for stored in fitting if stored.limit == max(each.limit for each in _alike(stored, fitting))]
    if not fitting:
        what = f"no evaluation of suite {suite!r}" if suite else "no finished evaluation"
        raise UsageError(f"{what} in {run}", hint=f"run `expunge eval {run}` first")
    if len(fitting) > 1:
        names = ", ".join(stored.folder.name for stored in fitting)
        raise UsageError(
            f"{run} has {len(fitting)} evaluations that fit: {names}",
            hint="name one with --suite and --profile, or give its folder",
        )
    return fitting[0]


def _alike(one: Stored, among: list[Stored]) -> list[Stored]:
    """Those that differ from `one` in their number of rows alone."""
    kind = (one.suite, one.profile, one.template)
    return [each for each in among if (each.suite, each.profile, each.template) == kind]


def read_tables(folder: Path) -> Tables:
    """The tables of an evaluation: trace and generations, and those of passes that were asked for besides.

    Raises:
        MetricError: it is an imported log, which has other tables.
        DataError: a table is missing, unreadable, or of a schema this version does not know.
    """
    if (folder / VALUES).exists():
        raise MetricError(
            f"{folder} is an imported log: it has values of rows and no tokens",
            hint=f"read it with `expunge metrics {folder}`, or name it with --reference there",
        )
    more = [name for name in FURTHER if (folder / f"{name}.parquet").exists()]
    again = "evaluate again with --overwrite"
    found = {name: read_table(folder / f"{name}.parquet", again=again) for name in ("trace", "generations", *more)}
    return Tables(**found)


def measure_of(suite: str) -> Measure:
    """The `measure` function of a catalogued suite: the one beside its declaration.

    Raises:
        UsageError: unknown suite, or a suite whose module has no `measure`.
    """
    declaration = SUITES.load(suite)
    found = getattr(importlib.import_module(declaration.__module__), "measure", None)
    if found is None:
        raise UsageError(
            f"suite {suite!r} cannot be measured from tables", hint=f"define `measure` in {declaration.__module__}"
        )
    return cast("Measure", found)


def _evaluations(run: Path) -> list[Stored]:
    if not run.is_dir():
        raise UsageError(
            f"no finished evaluation in {run}: there is no such folder", hint="list runs with `expunge runs`"
        )
    if (run / "trace.parquet").exists() or (run / VALUES).exists():
        if not (run / "spec.json").exists():
            raise UsageError(f"{run} is an unfinished evaluation", hint="repeat `expunge eval` or `expunge import`")
        return [Stored(run, read_spec(run / "spec.json"))]
    return [Stored(path.parent, read_spec(path)) for path in sorted(run.glob("evals/*/spec.json"))]


def read_spec(path: Path) -> dict[str, Any]:
    """What an evaluation's tables are made from.

    Raises:
        FileNotFoundError: the evaluation is unfinished.
        DataError: not a spec that this version reads.
    """
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error})", hint="evaluate again with --overwrite") from error
    given = spec if isinstance(spec, dict) else {}
    kinds = {"suite": str, "profile": str, "template": dict}
    missing = [key for key, kind in kinds.items() if not isinstance(given.get(key), kind)]
    if missing or given.get("schema") != SCHEMA:
        found = f"lacks {', '.join(missing)}" if missing else f"has schema {given.get('schema')}, not {SCHEMA}"
        raise DataError(f"{path} {found}", hint="evaluate again with --overwrite")
    return cast("dict[str, Any]", spec)


def find_comparable(other: Path, ours: Stored, *, who: str = REFERENCE) -> Stored:
    """The evaluation of another run that ours can be compared with.

    Args:
        other: its run directory or evaluation folder.
        ours: the evaluation that is measured; its tables need not be there yet.
        who: names the other run in errors: `REFERENCE` or `START`.

    Raises:
        UsageError: no such folder, or no evaluation of our suite in it.
        MetricError: it was made with another template, or its answers were scored for another profile or sampled
            otherwise.
    """
    candidates = [stored for stored in _evaluations(other) if stored.suite == ours.suite]
    if not candidates:
        raise UsageError(
            f"{who} {other} has no evaluation of suite {ours.suite!r}",
            hint=f"run `expunge eval {other} --suite {ours.suite}` first",
        )
    same = [stored for stored in candidates if stored.template == ours.template]
    if not same:
        templates = ", ".join(sorted({f"{one.spec['template']['name']} {one.template[:8]}" for one in candidates}))
        raise MetricError(
            f"{who} {other} was measured with another template ({templates};"
            f" ours is {ours.spec['template']['name']} {ours.template[:8]})",
            hint="evaluate both with the same --template, system prompt and date",
        )
    found = min(same, key=lambda stored: (stored.profile != ours.profile, stored.limit != ours.limit, -stored.limit))
    require_scored_for(found, scored_for(ours) or ours.profile)
    if who == REFERENCE:
        require_sampled_alike(ours, found)
        require_judged_alike(ours, found)
    return found


class _Start(NamedTuple):
    """The starting run's evaluation, or why there is none."""

    stored: Stored | None
    reason: str = NO_START

    @property
    def tables(self) -> Tables | None:
        """Its tables."""
        return None if self.stored is None else read_tables(self.stored.folder)

    def explain(self, skipped: dict[str, str]) -> dict[str, str]:
        """The reasons, with what is known about a start that is not there."""
        return {name: self.reason if why == NO_START else why for name, why in skipped.items()}


def _find_start(ours: Stored, named: Path | None) -> _Start:
    """The start that was named, which must fit; else the manifest's, where it fits."""
    if named is not None:
        return _Start(find_comparable(named, ours, who=START))
    run = ours.folder.resolve().parents[1]
    try:
        found = starting_run(run)
        if found.run is None:
            return _Start(None, f"{NO_START}: {found.reason}")
        theirs = find_comparable(found.run, ours, who=START)
    except ExpungeError as error:
        return _Start(None, f"{NO_START}: {error.message}; {error.hint}")
    again = f"`expunge eval {found.run} --suite {ours.suite} --overwrite`"
    if found.digest and theirs.spec.get("model_digest") not in (None, found.digest):
        return _Start(None, f"{NO_START}: {found.run} holds another model than this one was unlearned from")
    if _other_rows(ours, theirs):
        return _Start(None, f"{NO_START}: {START} {found.run} was evaluated on other rows; run {again}")
    return _Start(theirs)


def _other_rows(ours: Stored, theirs: Stored) -> bool:
    """Whether a split that both have holds other rows or variants of them."""
    mine, other = ours.spec.get("splits") or {}, theirs.spec.get("splits") or {}
    return any(mine[name].get(key) != other[name].get(key) for name in mine.keys() & other for key in _ROWS)


def _compared_by(again: Remeasured) -> dict[str, str]:
    if again.questions_compared is None:
        return {}
    return {"questions": "compared" if again.questions_compared else ROWS_ONLY}


def _describe(stored: Stored) -> dict[str, Any]:
    kept = ("model_digest", "dtype")
    return {"evaluation": stored.folder.name, **{key: stored.spec[key] for key in kept if key in stored.spec}}


def _to_json(done: Recomputed) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "suite": done.suite,
        "profile": done.profile,
        "metrics": {name: score.to_json() for name, score in done.scores.items()},
        "skipped": done.skipped,
        "reference": done.reference,
        "start": done.start,
    }
