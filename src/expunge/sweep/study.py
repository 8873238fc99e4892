"""The study: Optuna's journal of a sweep, and which trial a worker takes next."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from expunge.errors import StoppedError, UsageError
from expunge.sweep.claims import Claims, mutex
from expunge.sweep.goal import Values
from expunge.sweep.plan import Sweep, trial_name

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

JOURNAL = "journal.log"
MOST_DEATHS = 3
"""Workers that may die over one trial before it counts as failed."""
LEAST_FAILURES = 3
"""Trials that must have failed before a sweep gives up, which it does when more than half of those that ended did."""
_NAME = "sweep"


class Turn(NamedTuple):
    """A trial that this process carries out now."""

    study: Study
    trial: Trial
    params: dict[str, Any]
    """Recipe key -> value."""
    claim: ExitStack
    """Gives the trial back when it closes."""

    @property
    def number(self) -> int:
        """The trial's."""
        return self.trial.number


def require_optuna() -> None:
    """Refuse to go on without it.

    Raises:
        UsageError: it is not installed, or too old.
    """
    try:
        from optuna.trial import Trial
    except ImportError as error:
        raise UsageError("a sweep needs Optuna", hint='pip install "expunge[sweep]"') from error
    if not hasattr(Trial, "set_constraint"):
        import optuna

        raise UsageError(f"a sweep needs Optuna 5, found {optuna.__version__}", hint='pip install -U "expunge[sweep]"')


def open_study(sweep: Sweep) -> Study:
    """The study in the sweep's folder, made where there is none; called under `mutex`."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = sweep.root / JOURNAL
    lock = JournalFileOpenLock(str(path))
    if path.exists():
        lock.acquire()
        try:
            _mend(path)
        finally:
            lock.release()
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(path), lock_obj=lock)),
        study_name=_NAME,
        directions=["minimize" if one.direction == "minimise" else "maximize" for one in sweep.goal.objectives],
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
        load_if_exists=True,
    )


def trials_of(sweep: Sweep) -> list[FrozenTrial]:
    """Every trial as it stands in the journal."""
    with mutex(sweep.root):
        return open_study(sweep).get_trials(deepcopy=False)


def take_turn(sweep: Sweep, claims: Claims) -> Turn | None:
    """A trial whose worker is gone, else a new one; None where nothing is left to begin.

    Only under the mutex does anybody look at claims or open a trial, so no trial is taken by two workers and none too
    many is opened.

    Raises:
        StoppedError: too many trials have failed.
    """
    with mutex(sweep.root):
        study = open_study(sweep)
        trials = study.get_trials(deepcopy=False)
        require_success(trials)
        for trial in trials:
            name = trial_name(trial.number)
            if trial.state.is_finished() or claims.held(name):
                continue
            if _survives(study, trial, died=claims.orphaned(name)):
                return _turn(sweep, study, claims, trial)
        if len(trials) >= sweep.trials:
            return None
        return _turn(sweep, study, claims, None)


def tell(sweep: Sweep, turn: Turn, ended: Mapping[str, Any], start: Values) -> None:
    """Record how a trial ended.

    Args:
        sweep: whose goal counts.
        turn: the trial.
        ended: `state` (finished, pruned or failed) with `values` or `reason`.
        start: values of the starting model.
    """
    from optuna.trial import TrialState

    trial, values = turn.trial, ended.get("values", {})
    for name in ("values", "reason"):
        if name in ended:
            trial.set_user_attr(name, ended[name])
    if ended["state"] != "finished":
        state = TrialState.PRUNED if ended["state"] == "pruned" else TrialState.FAIL
        turn.study.tell(trial, state=state, skip_if_finished=True)
        return
    with warnings.catch_warnings():
        # Said again after a kill between these lines and the last one; the values are the same.
        warnings.simplefilter("ignore")
        for one in sweep.goal.constraints:
            trial.set_constraint(one.text, one.violation(values, start))
    turn.study.tell(trial, [values[one.metric] for one in sweep.goal.objectives], skip_if_finished=True)


def require_success(trials: list[FrozenTrial]) -> None:
    """Refuse to go on where failing is the rule.

    Raises:
        StoppedError: at least `LEAST_FAILURES` trials and more than half of those that ended have failed.
    """
    from optuna.trial import TrialState

    ended = [trial for trial in trials if trial.state.is_finished()]
    failed = [trial for trial in ended if trial.state == TrialState.FAIL]
    if len(failed) >= LEAST_FAILURES and 2 * len(failed) > len(ended):
        last = failed[-1]
        raise StoppedError(
            f"{len(failed)} of {len(ended)} trials failed; trial {last.number}: {last.user_attrs.get('reason', '?')}",
            hint="narrow the space to values that can work, then start another sweep with --out",
        )


def _survives(study: Study, frozen: FrozenTrial, *, died: bool) -> bool:
    """Whether a trial without a worker is to be taken up again; one that keeps killing its workers is not."""
    from optuna.trial import Trial, TrialState

    if not died:
        return True
    trial = Trial(study, frozen._trial_id)
    deaths = 1 + int(frozen.user_attrs.get("deaths", 0))
    trial.set_user_attr("deaths", deaths)
    if deaths >= MOST_DEATHS:
        trial.set_user_attr("reason", f"{deaths} workers died over it, most often killed for memory")
        study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
    return deaths < MOST_DEATHS


def _turn(sweep: Sweep, study: Study, claims: Claims, frozen: FrozenTrial | None) -> Turn:
    import optuna
    from optuna.trial import Trial

    number = len(study.get_trials(deepcopy=False)) if frozen is None else frozen.number
    with claims.take(trial_name(number)) as held, warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # A seed per trial: a worker that begins anew would otherwise draw again what the one before it drew.
        seed = _seed(sweep.seed, number)
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(4, min(10, sweep.trials // 3)))
        study.sampler = optuna.samplers.BruteForceSampler(seed) if sweep.exhaustive else sampler
        # One that was cut short between its creation and its last value gets the missing values now.
        trial = study.ask() if frozen is None else Trial(study, frozen._trial_id)
        params = {dimension.key: dimension.suggest(trial) for dimension in sweep.space}
        # The other one would end an optimisation loop, which ours is not, when its grid is exhausted.
        study.sampler = sampler
        return Turn(study, trial, params, held.pop_all())


def _seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4], "big")


def _mend(path: Path) -> None:
    """Drop the half line that a full disk or a kill left at the end of a journal; nobody writes meanwhile."""
    with path.open("rb+") as file:
        text = file.read()
        if text and not text.endswith(b"\n"):
            file.truncate(text.rfind(b"\n") + 1)
