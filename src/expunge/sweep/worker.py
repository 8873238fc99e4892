"""The worker program of a sweep: one trial after another, each an ordinary run that is measured by its own suite.

`python -m expunge.sweep.worker` is started by `demo.workers`.
"""

from __future__ import annotations

import atexit
import errno
import gc
import itertools
import os
import platform
import shutil
import time
import warnings
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import Any

from expunge.demo.worker import Say, main
from expunge.errors import ExpungeError, MetricError, StoppedError
from expunge.runs.run import Run
from expunge.runs.store import atomic_write_json, stops_when_full
from expunge.sweep.claims import Claims, mutex
from expunge.sweep.goal import Values, require_measured
from expunge.sweep.plan import MEASURED, START, Sweep, enter, read_sweep, start_values
from expunge.sweep.space import as_override
from expunge.sweep.study import Turn, take_turn, tell

SECONDS_BETWEEN_LOOKS = 1.0
_DISK = {errno.ENOSPC, errno.EDQUOT}


def start(step: Mapping[str, Any], progress: Say) -> dict[str, Any]:
    """Check the recipe and its data, and measure the starting model, unless another worker does or has."""
    sweep, claims = _enter(step)
    while not (sweep.root / MEASURED).exists():
        with mutex(sweep.root):
            held = None if claims.held(START) else _take(claims, START)
        if held is not None:
            with held:
                _measure_start(sweep, progress)
        else:
            time.sleep(SECONDS_BETWEEN_LOOKS)
    return {}


def trial(step: Mapping[str, Any], progress: Say) -> dict[str, Any]:
    """Carry out the next trial, if one is left."""
    sweep, claims = _enter(step)
    turn = take_turn(sweep, claims)
    if turn is None:
        return {"trial": None}
    with turn.claim:
        progress({"event": "trial", "number": turn.number, "state": "running", "params": turn.params})
        progress({"event": "trial", "number": turn.number, **_carry_out(sweep, turn, progress)})
    return {"trial": turn.number}


def _enter(step: Mapping[str, Any]) -> tuple[Sweep, Claims]:
    import torch

    # What loads late is no trial's time.
    import expunge.evals.run
    import expunge.train.runner  # noqa: F401

    torch.set_num_threads(step["threads"])
    sweep = read_sweep(Path(step["out"]))
    enter(sweep)
    return sweep, Claims(sweep.root)


def _take(claims: Claims, name: str) -> ExitStack:
    with claims.take(name) as held:
        return held.pop_all()


def _measure_start(sweep: Sweep, progress: Say) -> None:
    from expunge import api
    from expunge.config.load import load_recipe
    from expunge.sweep.check import check_methods

    check_methods(sweep)
    recipe = load_recipe(sweep.settings).recipe
    assert recipe.model.model_name_or_path is not None
    done = api.evaluate(
        recipe.model.model_name_or_path,
        recipe=recipe,
        out=sweep.start,
        reference=sweep.reference,
        device=_device(sweep),
        progress=progress,
    )
    found: dict[str, Any] = {
        "metrics": {name: score.to_json() for name, score in done.scores.items()},
        "skipped": dict(done.skipped),
    }
    for text in require_measured(sweep.goal, found["metrics"], found["skipped"]):
        progress({"event": "warning", "text": text})
    atomic_write_json(sweep.root / MEASURED, found)


def _carry_out(sweep: Sweep, turn: Turn, progress: Say) -> dict[str, Any]:
    """Unlearn, measure and tell the study.

    Returns:
        The state it ended in, with its values or the reason.

    Raises:
        StoppedError: the disk is full; the trial stays open.
        KeyboardInterrupt: likewise.
    """
    from optuna import TrialPruned

    began, before = time.perf_counter(), float(turn.trial.user_attrs.get("seconds", 0.0))
    ended: dict[str, Any]
    try:
        values = _unlearn_and_measure(sweep, turn, progress)
        ended = {"state": "finished", "values": dict(values)}
    except TrialPruned as pruned:
        ended = {"state": "pruned", "reason": str(pruned)}
    # Whatever one trial runs into, memory included, is that trial's result; the others go on.
    except Exception as error:
        if disk_is_full(error):
            raise StoppedError(
                f"no space left on the disk in trial {turn.number}",
                hint="free some space (trial-*/model of trials you do not need), then repeat the same command",
            ) from error
        reason = error.message if isinstance(error, ExpungeError) else f"{type(error).__name__}: {error}"
        ended = {"state": "failed", "reason": next(iter(reason.splitlines()), type(error).__name__)}
    finally:
        seconds = round(before + time.perf_counter() - began, 1)
        # Of a trial that is cut short as well; what stopped it must not be lost over this.
        with suppress(OSError):
            turn.trial.set_user_attr("seconds", seconds)
        _free_memory()
    if ended["state"] != "failed":
        # Nobody goes on with it; what failed may be looked into.
        shutil.rmtree(sweep.path(turn.number) / "checkpoints", ignore_errors=True)
    with stops_when_full(sweep.root):
        tell(sweep, turn, ended, start_values(sweep))
    return {**ended, "seconds": seconds}


def _unlearn_and_measure(sweep: Sweep, turn: Turn, progress: Say) -> Values:
    from expunge import api

    path, device = sweep.path(turn.number), _device(sweep)
    show = Watcher(sweep, turn, progress)
    if not _is_finished(path):
        places = [as_override("output_dir", str(path)), *([f"device={device}"] if device else [])]
        api.unlearn(sweep.settings, *sweep.changes(turn.params), *places, progress=show)
    done = api.evaluate(path, start=sweep.start, reference=sweep.reference, device=device, progress=show)
    for name in sweep.goal.metrics:
        if name not in done.scores:
            raise MetricError(f"{name} was not measured: {done.skipped.get(name, 'the suite did not give it')}")
    return {name: score.value for name, score in done.scores.items()}


class Watcher:
    """Passes a run's events on, and ends it where its evaluations so far are hopeless.

    Args:
        sweep: whether trials are pruned, and for which metric.
        turn: the trial.
        progress: receives the events with the trial's number.
    """

    def __init__(self, sweep: Sweep, turn: Turn, progress: Say) -> None:
        self._prune, self._turn, self._progress = sweep.prune, turn, progress
        self._metric = sweep.goal.objectives[0].metric

    def __call__(self, event: dict[str, Any]) -> None:
        """Take one event.

        Raises:
            TrialPruned: the study's pruner gives this trial up; the run writes down that it stopped.
        """
        self._progress({**event, "trial": self._turn.number})
        # A run that is through costs nothing more.
        if self._prune and event.get("event") == "eval" and event["step"] < event["total"]:
            self._look(event["step"], event["metrics"])

    def _look(self, step: int, metrics: Values) -> None:
        from optuna import TrialPruned

        if self._metric not in metrics:
            raise MetricError(f"{self._metric} was not measured after step {step}", hint="leave --prune out")
        value = metrics[self._metric]
        with warnings.catch_warnings():
            # A run that was resumed reports a step again; the study keeps the first report, which is the same.
            warnings.simplefilter("ignore")
            self._turn.trial.report(value, step)
        if self._turn.trial.should_prune():
            raise TrialPruned(f"{self._metric} is {value:.4g} after step {step}, behind half of the trials before it")


def disk_is_full(error: BaseException) -> bool:
    """Whether that is what an error comes from; libraries wrap it in errors of their own."""
    cause: BaseException | None = error
    while cause is not None:
        if (isinstance(cause, OSError) and cause.errno in _DISK) or os.strerror(errno.ENOSPC) in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _is_finished(path: Path) -> bool:
    return (path / "manifest.json").exists() and Run.open(path).manifest.status == "finished"


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _device(sweep: Sweep) -> str | None:
    """The GPU of this process where there are several; None: the recipe's, or the best there is."""
    import torch

    count = torch.cuda.device_count()
    if count < 2 or sweep.settings.get("device"):
        return None
    return f"cuda:{_own_place(sweep.root, count)}"


@cache
def _own_place(root: Path, count: int) -> int:
    """A number below `count`, the one that the fewest workers of this machine have; kept while this process lives."""
    claims = Claims(root)
    with mutex(root):
        places = ((depth, place) for depth in itertools.count() for place in range(count))
        names = ((f"{platform.node()}-gpu-{place}-{depth}", place) for depth, place in places)
        name, place = next((name, place) for name, place in names if not claims.held(name))
        atexit.register(_take(claims, name).close)
        return place


if __name__ == "__main__":
    main({"start": start, "trial": trial})
