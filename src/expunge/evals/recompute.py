"""Metrics from stored tables: no model, no torch, no rows."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import Any, NamedTuple, cast

import pyarrow.compute as pc
import pyarrow.parquet as pq

from expunge.catalog import SUITES
from expunge.errors import DataError, ExpungeError, MetricError, UsageError
from expunge.evals.suite import NO_START, TOTAL_LENGTH, Measure, Measured, Tables
from expunge.metrics.score import Score
from expunge.runs.starting import starting_run
from expunge.runs.store import atomic_write_json
from expunge.runs.tables import SCHEMA_VERSION

SCHEMA = 1
REFERENCE = "the reference"
START = "the starting run"
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
    """The retrained run: its folder's name, model digest and dtype."""
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


class Remeasured(NamedTuple):
    """A stored evaluation, measured again in memory; its files stay as they are."""

    stored: Stored
    profile: str
    tables: Tables
    measured: Measured
    reference: Stored | None
    """The retrained run's evaluation, where one was given."""
    start: Stored | None
    """The starting run's, where the suite compares with one and it was found."""


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
        run: a run directory, or one evaluation folder that holds `trace.parquet`.
        suite: which suite's tables, where the run has several.
        profile: whose definitions; the evaluated profile unless said. Profiles share tables.
        reference: the retrained run (or its evaluation folder), measured with the same template on the same rows.
        start: the run of the starting model (or its evaluation folder), measured likewise; unless said, the run that
            the manifest of an unlearned model names, where it fits. A suite that compares with no start ignores it.
        allow_missing: accept metrics of which less than 99 % of the rows can be measured.

    Raises:
        UsageError: there is no such evaluation, or several that fit.
        DataError: tables that cannot be read.
        MetricError: as the suite's `measure`; another template in the reference or in a `start` that was named;
            greedy answers whose length limit or scoring the profile does not share.
    """
    stored = find_evaluation(run, suite=suite, profile=profile)
    profile = profile or stored.profile
    tables = read_tables(stored.folder)
    _check_lengths(stored, tables, profile)
    require_scored_for(stored, profile)
    theirs = None if reference is None else find_comparable(reference, stored)
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
        reference=None if again.reference is None else _describe(again.reference),
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
    """The two tables of an evaluation.

    Raises:
        DataError: a table is missing, unreadable, or of a schema this version does not know.
    """
    tables = []
    for name in ("trace", "generations"):
        path = folder / f"{name}.parquet"
        try:
            table = pq.read_table(path)
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"{path} cannot be read: {reason}", hint="evaluate again with --overwrite") from error
        found = (table.schema.metadata or {}).get(b"expunge.schema", b"?").decode()
        if found != str(SCHEMA_VERSION):
            raise DataError(
                f"{path} has table schema {found}, this version reads {SCHEMA_VERSION}",
                hint="update expunge, or evaluate again with --overwrite",
            )
        tables.append(table)
    return Tables(*tables)


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
    if (run / "trace.parquet").exists():
        if not (run / "spec.json").exists():
            raise UsageError(f"{run} is an unfinished evaluation", hint="repeat `expunge eval`")
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
        MetricError: it was made with another template, or its answers were scored for another profile.
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
    require_scored_for(found, _scored_for(ours) or ours.profile)
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


def _check_lengths(stored: Stored, tables: Tables, profile: str) -> None:
    """Refuse greedy answers that the profile's own length limit would have cut, or would not have cut."""
    had, wanted = stored.spec.get("total_length"), TOTAL_LENGTH.get(profile)
    if had == wanted or tables.generations.num_rows == 0:
        return
    rows = tables.generations.num_rows
    long = rows - _short(tables, wanted) if wanted is not None else rows - pc.sum(tables.generations["ended"]).as_py()
    if long:
        limit = f"{wanted} tokens of prompt and answer" if wanted is not None else f"a total of {had} tokens"
        raise MetricError(
            f"{long} of {rows} greedy answers run past {limit}, and the profiles {stored.profile!r} and {profile!r}"
            " differ in that limit",
            hint=f"generate for this profile: `expunge eval --profile {profile}`",
        )


def require_scored_for(stored: Stored, profile: str) -> None:
    """Refuse greedy answers that were scored by the rules of another profile, where a suite has several.

    Raises:
        MetricError: they were; the numbers would stand under names that mean something else.
    """
    scored_for = _scored_for(stored)
    if scored_for not in (None, profile):
        raise MetricError(
            f"the greedy answers in {stored.folder} were scored for the profile {scored_for!r}; {profile!r} scores them"
            " otherwise",
            hint=f"evaluate for this profile: `expunge eval --suite {stored.suite} --profile {profile}`",
        )


def _scored_for(stored: Stored) -> str | None:
    """The profile its answers were scored for; None where every profile scores them alike."""
    found: str | None = (stored.spec.get("options") or {}).get("scored_for")
    return found


def _short(tables: Tables, limit: int) -> int:
    """How many greedy answers ended within a limit on prompt and answer together."""
    if tables.generations["token"].null_count:
        raise MetricError(
            "the generated tokens were purged, so their lengths are unknown",
            hint="measure with the profile that was evaluated",
        )
    answers = tables.trace.filter(pc.equal(tables.trace["variant"], "answer")).select(["split", "row", "num_prompt"])
    made = tables.generations.select(["split", "row", "ended"])
    made = made.append_column("length", pc.list_value_length(tables.generations["token"]))
    joined = made.join(answers, ["split", "row"])
    # The end token counts as well.
    total = pc.add(pc.add(joined["num_prompt"], joined["length"]), 1)
    return int(pc.sum(pc.and_(joined["ended"], pc.less_equal(total, limit))).as_py() or 0)


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
