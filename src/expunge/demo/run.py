"""The demo from an empty folder to a report: build, train or reuse, unlearn, evaluate, guard, tell."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from expunge import __version__
from expunge.demo import bases
from expunge.demo.folder import earlier_state
from expunge.demo.plan import FAST, FULL, METHODS, RETRAINED, START, Plan, Planned
from expunge.demo.progress import Watch
from expunge.demo.story import SUITE, Exchange, tell
from expunge.demo.summary import mean_runs
from expunge.demo.workers import carry_out, processors
from expunge.errors import UsageError
from expunge.evals.recompute import Recomputed, recompute
from expunge.runs.lock import exclusive
from expunge.runs.store import atomic_write_json, stops_when_full

SCHEMA = 1
MOST_WORKERS = 8
"""Each holds a model and half a gigabyte of libraries."""
STATE = "demo.json"
"""What a demo folder holds: the settings it was begun with and, at the end, the result."""

Progress = Callable[[dict[str, Any]], None]


class DemoRun(NamedTuple):
    """One run and its metrics."""

    name: str
    method: str
    path: Path
    cached: bool
    """Whether it was trained by an earlier demo and reused."""
    metrics: Mapping[str, Any]
    """Metric -> its JSON form."""
    skipped: Mapping[str, str]
    guard: Mapping[str, Any] | None = None
    """The guard that was saved beside the model: its rate, threshold and what it does to the run's own rows."""

    def to_json(self) -> dict[str, Any]:
        """As `expunge demo --json` prints it."""
        return {**self._asdict(), "path": str(self.path), "metrics": dict(self.metrics), "skipped": dict(self.skipped)}


class SeedResult(NamedTuple):
    """Everything of one seed."""

    seed: int
    report: Path
    runs: tuple[DemoRun, ...]
    story: tuple[Exchange, ...]

    def to_json(self) -> dict[str, Any]:
        """One entry of `seeds`."""
        return {
            "seed": self.seed,
            "report": str(self.report),
            "runs": [run.to_json() for run in self.runs],
            "story": [exchange._asdict() for exchange in self.story],
        }


class DemoResult(NamedTuple):
    """What `expunge demo` prints."""

    seconds: float
    fast: bool
    seeds: tuple[SeedResult, ...]

    def to_json(self) -> dict[str, Any]:
        """One object: the runs of the seed, or with several seeds their means; every seed under `seeds`."""
        first = self.seeds[0]
        each = [seed.to_json() for seed in self.seeds]
        return {
            "schema": SCHEMA,
            "version": __version__,
            "seed": first.seed,
            "seconds": self.seconds,
            "fast": self.fast,
            "report": str(first.report),
            "runs": each[0]["runs"] if len(each) == 1 else mean_runs([one["runs"] for one in each]),
            "story": each[0]["story"],
            "seeds": each,
        }


def demo(
    *,
    out: str | Path = "runs/demo",
    seed: int = 0,
    seeds: int = 1,
    fast: bool = False,
    fresh: bool = False,
    progress: Progress | None = None,
) -> DemoResult:
    """Make a tiny model forget invented people, three ways, and measure what that did. Offline, on a CPU.

    Builds a pocket world, trains a model that knows it and one that never saw the people to forget, unlearns with EUA,
    NPO and gradient difference, evaluates all five, calibrates the energy guard on EUA's model, writes a report.

    Args:
        out: folder for everything; one that an interrupted demo left is continued, a finished one is replaced.
        seed: of the world and of every model.
        seeds: how many seeds in a row, from `seed` on; with more than one a second retrained model is trained as well.
        fast: a world half as large, for a look; the stated thresholds do not apply to it.
        fresh: train the starting and retrained models although an earlier demo kept them.
        progress: receives one dict per event.

    Returns:
        Paths, metrics and answers of every run.

    Raises:
        UsageError: the folder or the cache cannot be written to, or the folder holds something else.
        StoppedError: the disk is full, or a worker was killed; the same call continues.
        KeyboardInterrupt: Ctrl-C; the same call continues.
    """
    started = time.perf_counter()
    if seeds < 1:
        raise UsageError(f"seeds is {seeds}", hint="at least one")
    root = Path(out).absolute()
    show = progress or (lambda event: None)
    size = FAST if fast else FULL
    plans = [Plan(n, size, root / f"seed-{n}", second=seeds > 1) for n in range(seed, seed + seeds)]
    bases.require_writable_cache()
    with stops_when_full(root):
        root.mkdir(parents=True, exist_ok=True)
    with exclusive(root):
        settings = {"version": __version__, "size": size._asdict(), "seeds": [plan.seed for plan in plans]}
        _begin(root, settings, show)
        worlds = {plan.seed: bases.write_plan_world(plan) for plan in plans}
        several = len(plans) > 1
        reused = {plan.seed: bases.reuse(plan, worlds[plan.seed], show, several=several) for plan in plans if not fresh}
        jobs = _ordered([(plan, run) for plan in plans for run in plan.runs])
        done = carry_out(
            [plan.job(run) for plan, run in jobs],
            Watch(show, [(plan.job(run), run.name in reused.get(plan.seed, ())) for plan, run in jobs]),
            # Three methods share two cores better side by side than two and then one.
            count=min(max(processors(), len(METHODS)), MOST_WORKERS),
        )
        for plan in plans:
            bases.keep_new(plan, worlds[plan.seed], reused.get(plan.seed, ()))
        found = tuple(_finish(plan, reused.get(plan.seed, ()), done[plan.job_name(METHODS[0])]) for plan in plans)
        result = DemoResult(round(time.perf_counter() - started, 1), fast, found)
        atomic_write_json(root / STATE, {"settings": settings, "result": result.to_json()})
    return result


def _begin(root: Path, settings: Mapping[str, Any], show: Progress) -> None:
    """Continue what an interrupted demo with these settings left; clear what a finished or another one left.

    Raises:
        UsageError: the folder holds something that no demo made.
    """
    before = earlier_state(root, STATE, what="demo")
    same = before.get("settings") == json.loads(json.dumps(settings))
    if same and "result" not in before:
        show({"event": "note", "text": f"{root} holds this demo unfinished: continuing it"})
        return
    for folder in root.glob("seed-*"):
        shutil.rmtree(folder)
    atomic_write_json(root / STATE, {"settings": settings})


def _ordered(jobs: list[tuple[Plan, Planned]]) -> list[tuple[Plan, Planned]]:
    """Of each seed the longest first: everything waits for the starting model."""
    rank = {START.name: 0, RETRAINED.name: 1, "eua": 2, "npo": 3, "grad_diff": 3}
    return sorted(jobs, key=lambda job: (job[0].seed, rank.get(job[1].name, 4)))


def _finish(plan: Plan, reused: Sequence[str], steps: Sequence[Mapping[str, Any]]) -> SeedResult:
    """Measure every run against the starting and the retrained one, and write the report.

    Args:
        plan: the runs of one seed.
        reused: those an earlier demo trained.
        steps: what the steps of EUA's job gave: unlearn, eval, guard, ask.
    """
    from expunge import api

    start, retrained = plan.path(START), plan.path(RETRAINED)
    measured: dict[str, Recomputed] = {}
    for run in plan.runs:
        path = plan.path(run)
        measured[run.name] = recompute(
            path,
            suite=SUITE,
            reference=None if run is RETRAINED else retrained,
            start=start if run.kind == "unlearn" else None,
        )
    others = [plan.path(run) for run in plan.runs if run.name not in (START.name, RETRAINED.name, "eua")]
    report = api.report(plan.path(METHODS[0]), start=start, reference=retrained, runs=others)
    guard, asked = steps[2], steps[3]
    runs = tuple(
        _demo_run(plan, run, measured[run.name], run.name in reused, guard if run is METHODS[0] else None)
        for run in plan.runs
    )
    return SeedResult(plan.seed, Path(report), runs, tell(start, retrained, plan.path(METHODS[0]), asked["answers"]))


def _demo_run(plan: Plan, run: Planned, measured: Recomputed, cached: bool, guard: Mapping[str, Any] | None) -> DemoRun:
    metrics = {name: score.to_json() for name, score in measured.scores.items()}
    skipped = dict(measured.skipped)
    if guard is not None:
        # Where the suite has too few prompts for its rate, the saved guard's own numbers, at its own rate, stand.
        metrics = {**guard["metrics"], **metrics}
        skipped = {name: reason for name, reason in skipped.items() if name not in metrics}
        guard = {name: value for name, value in guard.items() if name != "seconds"}
    return DemoRun(run.name, run.method, plan.path(run), cached, metrics, skipped, guard)
