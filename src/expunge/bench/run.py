"""Every method on worlds of one size: tuned on one world with equal budgets, reported on others."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge import __version__
from expunge.bench.plan import CELL, Cell, World, bench_size, write_extras
from expunge.bench.result import FORGET, Base, BenchResult, MethodResult, Outcome, choose
from expunge.bench.settings import TRIALS, chosen_methods, read_settings, tuning_of
from expunge.demo import bases
from expunge.demo.folder import earlier_state
from expunge.demo.plan import RETRAINED, START, Plan, Planned
from expunge.demo.progress import Watch
from expunge.demo.workers import Job, carry_out, processors
from expunge.errors import UsageError
from expunge.evals.recompute import recompute
from expunge.runs.lock import exclusive
from expunge.runs.store import atomic_write_json, stops_when_full

STATE = "bench.json"
"""What a bench folder holds: what its cells have in common and, at the end, the result."""
WORKER = "expunge.bench.worker"
MOST_WORKERS = 8

Progress = Callable[[dict[str, Any]], None]


def bench_methods(
    *,
    methods: str | None = None,
    out: str | Path = "runs/bench",
    people: int = 12,
    seed: int = 200,
    seeds: int = 1,
    trials: int = TRIALS,
    settings: Path | None = None,
    jobs: int | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> BenchResult:
    """Unlearn with every method on the same small worlds, each with the same number of settings tried, and measure.

    World `seed` is for tuning: every method runs there with each of its settings (`bench.settings.DECLARED`), and one
    is chosen by `CRITERION`. The worlds after it, which nothing was tuned on, are reported on with the chosen settings.

    Args:
        methods: comma-separated names; every catalogued method (entry points too) unless given.
        out: folder for everything; finished cells that lie there are not carried out again.
        people: in each world.
        seed: of the tuning world; the worlds reported on are `seed + 1`, `seed + 2`, ...
        seeds: how many worlds are reported on.
        trials: settings tried for each method, of the four declared.
        settings: YAML file, method -> four settings instead of the declared ones.
        jobs: worker processes; one per core unless given.
        fresh: carry out the cells of these methods although they are finished.
        progress: receives one dict per event.

    Returns:
        Every cell, the chosen settings and the columns of the table. A cell that failed is among them, with its error.

    Raises:
        UsageError: an unknown method, a number out of range, or a folder that cannot be used.
        StoppedError: the disk is full, or the worker of a base model was killed; the same call continues.
        KeyboardInterrupt: Ctrl-C; the same call continues.
    """
    started = time.perf_counter()
    names = chosen_methods(methods)
    _require_counts(people=people, seeds=seeds, trials=trials, jobs=jobs)
    own = read_settings(settings) if settings else {}
    show = progress or (lambda event: None)
    root = Path(out).absolute()
    bases.require_writable_cache()
    with stops_when_full(root):
        root.mkdir(parents=True, exist_ok=True)
    with exclusive(root):
        numbers = list(range(seed, seed + seeds + 1))
        state = {"version": __version__, "people": people, "seeds": numbers}
        _begin(root, state)
        worlds = [_world(root, people, number) for number in numbers]
        runner = _Runner(worlds, jobs or min(processors(), MOST_WORKERS), show)
        tried = {
            name: [
                worlds[0].cell(name, setting, trial)
                for trial, setting in enumerate(tuning_of(name, own).settings(trials), 1)
            ]
            for name in names
        }
        if fresh:
            _forget(worlds, [cell for cells in tried.values() for cell in cells])
        runner.bases_and([cell for cells in tried.values() for cell in cells])
        gold = _metrics(worlds[0].base, RETRAINED)[FORGET]["value"]
        tuned = {name: _tuned(runner, cells, gold) for name, cells in tried.items()}
        chosen = {name: one.setting for name, one in tuned.items() if one.chosen is not None}
        final = {name: [world.cell(name, setting) for world in worlds[1:]] for name, setting in chosen.items()}
        runner.cells([cell for cells in final.values() for cell in cells])
        result = BenchResult(
            round(time.perf_counter() - started, 1),
            people,
            seed,
            tuple(world.seed for world in worlds[1:]),
            trials,
            tuple(_base(worlds[1:], run) for run in (START, RETRAINED)),
            tuple(
                one._replace(runs=tuple(runner.outcome(cell) for cell in final.get(name, ())))
                for name, one in tuned.items()
            ),
        )
        atomic_write_json(root / STATE, {"settings": state, "result": result.to_json()})
    return result


class _Runner:
    """Carries out what is missing, and remembers what failed."""

    def __init__(self, worlds: Sequence[World], count: int, show: Progress) -> None:
        self._worlds, self._count, self._show = worlds, count, show
        self._failed: dict[str, Mapping[str, Any]] = {}

    def bases_and(self, cells: Sequence[Cell]) -> None:
        """Every base model, from the cache where it lies there, and these cells."""
        reused = {world.seed: bases.reuse(world.base, world.digest, self._show, several=True) for world in self._worlds}
        # What was kept has been measured as well.
        wanted = [
            (job, world)
            for world in self._worlds
            for job in world.base_jobs()
            if job.name.partition("/")[2] not in reused[world.seed]
        ]
        first = [job for job, world in wanted if world is self._worlds[0]]
        later = [job for job, world in wanted if world is not self._worlds[0]]
        after = tuple(job.name for job in first)
        # Nothing on the tuning world waits for the other worlds.
        self._carry_out([*first, *(cell.job()._replace(after=after) for cell in self._missing(cells)), *later])
        for world in self._worlds:
            bases.keep_new(world.base, world.digest, reused[world.seed])

    def cells(self, cells: Sequence[Cell]) -> None:
        """These cells, whose base models are there."""
        self._carry_out([cell.job() for cell in self._missing(cells)])

    def outcome(self, cell: Cell) -> Outcome:
        """What became of a cell."""
        if found := cell.finished():
            return Outcome(cell, found)
        failure = self._failed[cell.name]
        return Outcome(cell, None, failure["error"], failure["hint"])

    def _missing(self, cells: Sequence[Cell]) -> list[Cell]:
        missing = [cell for cell in cells if cell.finished() is None]
        if len(missing) < len(cells):
            text = f"{len(cells) - len(missing)} of {len(cells)} cells are finished and stay as they are"
            self._show({"event": "note", "text": text})
        return missing

    def _carry_out(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        watch = Watch(self._show, [(job, False) for job in jobs], name="bench")
        done = carry_out(jobs, watch, count=self._count, worker=WORKER)
        self._failed |= {name: results[0] for name, results in done.items() if results and "error" in results[0]}


def _tuned(runner: _Runner, cells: Sequence[Cell], gold: float) -> MethodResult:
    """The trials of one method and the best of them."""
    trials = tuple(runner.outcome(cell) for cell in cells)
    scores = tuple(None if trial.found is None else trial.closeness(gold) for trial in trials)
    return MethodResult(cells[0].method, trials, scores, choose(scores), ())


def _begin(root: Path, settings: Mapping[str, Any]) -> None:
    """Take up the folder of an earlier bench, or an empty one.

    Raises:
        UsageError: it holds something else, or a bench of other worlds.
    """
    before = earlier_state(root, STATE, what="bench").get("settings", settings)
    differing = [key for key in ("version", "people") if before.get(key) != settings[key]]
    if differing:
        told = ", ".join(f"{key} {before.get(key)}, not {settings[key]}" for key in differing)
        raise UsageError(f"{root} holds a bench with {told}", hint="choose another folder with --out, or delete it")
    if not (root / STATE).exists():
        atomic_write_json(root / STATE, {"settings": settings})


def _require_counts(*, people: int, seeds: int, trials: int, jobs: int | None) -> None:
    """Raises: UsageError."""
    for name, value in (("people", people), ("seeds", seeds), ("trials", trials), ("jobs", jobs)):
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}", hint="at least one")
    if trials > TRIALS:
        raise UsageError(
            f"trials is {trials}, and {TRIALS} settings are declared for every method",
            hint=f"at most {TRIALS}; other settings go into a file for --settings",
        )


def _world(root: Path, people: int, seed: int) -> World:
    plan = Plan(seed, bench_size(people), root / f"world-{seed}")
    digest = bases.write_plan_world(plan)
    write_extras(plan.world)
    return World(plan, digest)


def _forget(worlds: Sequence[World], tried: Sequence[Cell]) -> None:
    """Take the finished cells of these methods for not finished."""
    for path in {cell.path for cell in tried} | {world.base.folder / cell.method for world in worlds for cell in tried}:
        (path / CELL).unlink(missing_ok=True)


def _metrics(plan: Plan, run: Planned) -> dict[str, Any]:
    """Metrics of a base model, measured against the retrained one where it is another."""
    retrained = None if run is RETRAINED else plan.path(RETRAINED)
    done = recompute(plan.path(run), suite="world", reference=retrained)
    return {name: score.to_json() for name, score in done.scores.items()}


def _base(worlds: Sequence[World], run: Planned) -> Base:
    return Base(
        run.name,
        tuple(world.base.path(run) for world in worlds),
        tuple(_metrics(world.base, run) for world in worlds),
    )
