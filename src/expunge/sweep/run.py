"""A sweep from outside: begin one or take it up, keep workers at it, and say what it found."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from expunge.config.load import Given, load_recipe
from expunge.demo.workers import Job, carry_out, processors
from expunge.errors import UsageError
from expunge.runs.store import stops_when_full
from expunge.sweep.check import check_keys, check_recipes
from expunge.sweep.claims import Claims, mutex
from expunge.sweep.goal import Goal, parse_goal, require_known
from expunge.sweep.plan import FILE, MEASURED, START, Sweep, is_sweep, read_sweep, trial_name
from expunge.sweep.progress import Watch
from expunge.sweep.space import flat_keys, parse_space, space_size, spelled, split_arguments
from expunge.sweep.study import JOURNAL, open_study, require_optuna, require_success, trials_of
from expunge.sweep.summary import Summary, default_folder, summarise

WORKER = "expunge.sweep.worker"
SECONDS_BETWEEN_LOOKS = 1.0
_FOLDERS = ("claims", START)

Progress = Callable[[dict[str, Any]], None]


def sweep(
    recipe: str,
    arguments: Sequence[str] = (),
    *,
    minimise: Sequence[str] = (),
    maximise: Sequence[str] = (),
    subject_to: Sequence[str] | None = None,
    trials: int = 20,
    workers: int = 1,
    out: str | Path | None = None,
    seed: int = 0,
    prune: bool = False,
    reference: str | Path | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Carry a recipe out many times with other settings, and find those that forget best and keep enough.

    A trial is an ordinary run directory `out/trial-0007` with its evaluation. Trials that ended stay; one that was
    interrupted, or whose worker was killed, is taken up where its run stopped, with the same settings.

    Args:
        recipe: a YAML file or a packaged recipe's name; its section `sweep:` is a search space.
        arguments: `key=distribution` for what is searched (`expunge.sweep.space`), `key=value` for what is set.
        minimise: metrics to be as low as can be; see `parse_goal`.
        maximise: metrics to be as high as can be.
        subject_to: conditions that a trial must satisfy to count.
        trials: how many in all; more than an earlier call gave carries that sweep on.
        workers: processes on this machine.
        out: the sweep's folder; `runs/sweep-<recipe>` unless given.
        seed: of what is tried.
        prune: give hopeless trials up, by the evaluations during training (`train.eval_every`).
        reference: an evaluated run of the retrained model, for metrics that need one.
        progress: receives one dict per event.

    Returns:
        Every trial, the best and the Pareto front; also written to `out/summary.json` and `out/best.yaml`.

    Raises:
        UsageError: a key, distribution, metric, method or folder that cannot be used; before the first trial.
        DataError: rows that cannot be used; likewise.
        StoppedError: most trials fail, or the disk is full; the same call continues.
        KeyboardInterrupt: asked to stop; the same call continues.
    """
    require_optuna()
    space, overrides = split_arguments(arguments)
    goal = parse_goal(minimise, maximise, subject_to)
    wanted = describe(recipe, space, overrides, Options(goal, trials, seed, prune, reference), out)
    if wanted.trials < 1 or workers < 1:
        raise UsageError(f"trials is {trials} and workers is {workers}", hint="at least one of each")
    begun, made = begin(wanted)
    try:
        return _work(begun, workers, progress or (lambda event: None))
    except Exception:
        # Only what can start is written down: a corrected command must not meet what is left of the wrong one.
        if made and not any(begun.root.glob("trial-*")):
            _undo(begun)
        raise


def join(out: str | Path, *, workers: int = 1, progress: Progress | None = None) -> Summary:
    """Help with a sweep that was begun elsewhere, or carry it on.

    Args:
        out: its folder, which this machine reaches too.
        workers: processes on this machine.
        progress: receives one dict per event.

    Raises:
        UsageError: no sweep lies there.
        StoppedError, KeyboardInterrupt: as `sweep`.
    """
    require_optuna()
    return _work(read_sweep(Path(out)), workers, progress or (lambda event: None))


def look(out: str | Path) -> Summary:
    """A sweep as it stands, without carrying anything out.

    Raises:
        UsageError: no sweep lies there.
    """
    require_optuna()
    found = read_sweep(Path(out))
    return summarise(found, trials_of(found))


class Options(NamedTuple):
    """What a sweep is beside its recipe and space; see `sweep`."""

    goal: Goal
    trials: int
    seed: int
    prune: bool
    reference: str | Path | None


def describe(
    recipe: str, space: Mapping[str, str], overrides: list[str], options: Options, out: str | Path | None
) -> Sweep:
    """The sweep a command describes, checked as far as can be without loading anything.

    Raises:
        UsageError: what no trial could run.
    """
    loaded = load_recipe(recipe, overrides)
    given = loaded.recipe
    if given.push_to_hub:
        raise UsageError(
            "push_to_hub in a sweep would push every trial",
            hint="leave it out, and push the best one afterwards: expunge push RUN",
        )
    settled = {spelled(override.partition("=")[0]) for override in overrides}
    if both := settled & space.keys():
        key = min(both)
        raise UsageError(f"{key} is set and searched", hint="give it once")
    # What the command line sets is settled, whatever the recipe would search.
    written = {key: text for key, text in flat_keys(given.sweep).items() if key not in settled}
    settings = _settings(loaded)
    dimensions = parse_space({**written, **space})
    root = Path(out) if out is not None else default_folder(recipe)
    found = Sweep(
        root=root.absolute(),
        recipe=recipe,
        overrides=tuple(overrides),
        settings=settings,
        space=dimensions,
        goal=options.goal,
        # More would only repeat what was tried.
        trials=int(min(options.trials, space_size(dimensions))),
        seed=options.seed,
        prune=options.prune,
        reference=None if options.reference is None else str(Path(options.reference).absolute()),
        folder=str(Path.cwd()),
    )
    check_keys(found.space)
    check_recipes(found)
    require_known(found.goal, given.eval.suite)
    return found


def _settings(given: Given) -> dict[str, Any]:
    """A recipe as written, with its paths located, without what is not the same in every trial."""
    settings = given.recipe.model_dump(mode="json", exclude_unset=True, exclude={"output_dir"})
    if "data" in settings and "tofu" not in given.given["data"]:
        # Looked up, and so set, for every recipe.
        del settings["data"]["tofu"]
    return settings


def begin(wanted: Sweep) -> tuple[Sweep, bool]:
    """Write a sweep down, or take up the one that lies there; and whether it was written down now.

    Raises:
        UsageError: something else lies there.
    """
    root = wanted.root
    with stops_when_full(root):
        root.mkdir(parents=True, exist_ok=True)
    others = [item for item in root.iterdir() if not item.name.startswith(".") and item.stem != "claims"]
    if others and not is_sweep(root):
        raise UsageError(f"{root} is not empty and no sweep lies there", hint="choose another folder with --out")
    with mutex(root):
        if not is_sweep(root):
            wanted.write()
            return wanted, True
        before = read_sweep(root)
        before.require_same(wanted)
        if wanted.trials > before.trials:
            before = before._replace(trials=wanted.trials)
            before.write()
        return before, False


def _work(sweep: Sweep, workers: int, show: Progress) -> Summary:
    """Keep workers at it until every trial has ended, whoever carries it out."""
    what = f"{sweep.trials} trials{', every combination once' if sweep.exhaustive else ''}"
    show({"event": "note", "text": f"{what}, in {sweep.root}: {sweep.goal.in_words()}"})
    watch, claims = Watch(sweep, show), Claims(sweep.root)
    step = {"out": str(sweep.root), "threads": max(1, processors() // workers)}
    while True:
        summary, elsewhere = _standing(sweep, claims)
        watch.stands(summary)
        if summary.finished:
            return summary
        waiting = sweep.trials - sum(trial.state not in ("running", "waiting") for trial in summary.trials) - elsewhere
        if waiting > 0:
            first = [] if (sweep.root / MEASURED).exists() else [Job(START, ({"do": "start", **step},))]
            after = tuple(job.name for job in first)
            turn = Job("", ({"do": "trial", **step},), after, may_fail=True)
            # A few to spare, for trials whose worker dies; one that finds nothing to do takes no time.
            turns = [turn._replace(name=f"turn {number}") for number in range(waiting + workers)]
            carry_out([*first, *turns], watch, count=min(workers, waiting), worker=WORKER)
        else:
            time.sleep(SECONDS_BETWEEN_LOOKS)


def _standing(sweep: Sweep, claims: Claims) -> tuple[Summary, int]:
    """The sweep as it stands, written down, and how many trials other processes are at.

    Raises:
        StoppedError: too many trials have failed.
    """
    with mutex(sweep.root):
        trials = open_study(sweep).get_trials(deepcopy=False)
        elsewhere = sum(not trial.state.is_finished() and claims.held(trial_name(trial.number)) for trial in trials)
        summary = summarise(sweep, trials)
        summary.write()
    if not summary.finished:
        require_success(trials)
    return summary, elsewhere


def _undo(sweep: Sweep) -> None:
    for name in (FILE, MEASURED, JOURNAL, "summary.json"):
        (sweep.root / name).unlink(missing_ok=True)
    for name in _FOLDERS:
        shutil.rmtree(sweep.root / name, ignore_errors=True)
    if not any(sweep.root.iterdir()):
        sweep.root.rmdir()
