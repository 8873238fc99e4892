"""What looks at a model while it trains: evaluations, the best of them, when to stop early, trackers."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from expunge.config.schema import Recipe, TrainSection
from expunge.errors import UsageError
from expunge.evals.suite import Measured
from expunge.methods.base import Method
from expunge.runs.run import Run
from expunge.train.best import KEY, Best, Keeper
from expunge.train.checkpoint import Checkpoints
from expunge.train.engine import Emit, Engine, Verdict
from expunge.train.trackers import Place, Trackers, require_trackers

HEADLINE = ("forget.extraction_strength", "retain.extraction_strength", "model_utility")
"""What is shown of an evaluation where nothing is compared."""


class Evaluator(Protocol):
    """Measures an engine's model as it is."""

    def __call__(self, engine: Engine) -> Measured:
        """The suite's metrics; called by every process together, and the same on each."""

    def keep_only(self, steps: Collection[int]) -> None:
        """Drop what other points stored beside their metrics."""


def require_watchable(recipe: Recipe, method: Method) -> None:
    """Refuse settings that no run could follow, before anything is loaded.

    Raises:
        UsageError: a tracker that is unknown or not installed; a best point or patience without evaluations; a metric
            or condition that the suite cannot report; gradients of a divided model; a method whose model is made after
            the last step.
    """
    settings = recipe.train
    require_trackers(settings.report_to)
    if settings.keep_best and not settings.eval_every:
        raise UsageError(f"{KEY} compares evaluations, and there are none", hint="set train.eval_every")
    if settings.early_stopping_patience and not settings.keep_best:
        raise UsageError(
            "train.early_stopping_patience waits for a better value, and nothing says of what",
            hint=f"set {KEY} to a metric, e.g. forget.extraction_strength, and train.eval_every",
        )
    if settings.eval_every and settings.fsdp and recipe.eval.gradnorm:
        raise UsageError(
            "eval.gradnorm differentiates one text at a time, and train.fsdp divides the model among the processes",
            hint="leave it out here, and measure the finished run with `expunge eval RUN --gradnorm`",
        )
    if settings.eval_every and type(method).finish is not Method.finish:
        raise UsageError(
            f"{method.name} makes its model of the trained weights after the last step, so evaluations before that"
            " are of another model",
            hint="leave train.eval_every out, and measure the finished run with `expunge eval`",
        )
    keeper_of(recipe)


def keeper_of(recipe: Recipe) -> Keeper | None:
    """What compares the evaluations of a recipe's run; None where it keeps the last point.

    Raises:
        UsageError: as `Keeper`.
    """
    rule, patience = recipe.train.keep_best, recipe.train.early_stopping_patience
    return None if rule is None else Keeper(rule, patience=patience, suite=recipe.eval.suite)


def watcher_of(run: Run, recipe: Recipe, evaluate: Evaluator | None, emit: Emit) -> Watcher | None:
    """What looks on while a recipe is carried out, on every process alike; None where it asks for nothing."""
    if evaluate is None and not recipe.train.report_to:
        return None
    trackers = Trackers(
        recipe.train.report_to,
        place=Place(run.path, run.manifest.created),
        settings=run.manifest.resolved,
        warn=lambda text: emit({"event": "warning", "text": text}),
    )
    return Watcher(recipe.train, emit=emit, evaluate=evaluate, keeper=keeper_of(recipe), trackers=trackers)


class Watcher:
    """The engine's `Watch` of a run.

    Every process has one and comes to the same decisions, since all see the same scores; random numbers, gradients
    and the model's mode are as they were when it returns.

    Args:
        settings: `eval_every`.
        emit: takes the events of evaluations, and warnings.
        evaluate: measures the model; None: nobody asked.
        keeper: compares evaluations; None: the last point is the run's model.
        trackers: told every step and evaluation, on the main process.
    """

    def __init__(
        self,
        settings: TrainSection,
        *,
        emit: Emit,
        evaluate: Evaluator | None = None,
        keeper: Keeper | None = None,
        trackers: Trackers | None = None,
    ) -> None:
        self.every, self.emit = settings.eval_every, emit
        self.evaluate, self.keeper, self.trackers = evaluate, keeper, trackers

    @property
    def best(self) -> Best | None:
        """The point whose weights become the run's model, where points are compared and one counts."""
        return self.keeper.best if self.keeper else None

    def begin(self, engine: Engine) -> None:
        """Start the trackers, where steps are left to take; called by every process together.

        Raises:
            UsageError: a tracker cannot be started.
        """
        trackers = self.trackers
        if trackers and not engine.ended and engine.step < engine.total_steps:
            engine.processes.first(lambda: trackers.start(engine.step + 1))

    def __call__(self, engine: Engine, event: dict[str, Any]) -> Verdict:
        """See `Watch`.

        Raises:
            UsageError: a metric that is compared was not measured.
            ExpungeError: as the evaluation.
        """
        if self.trackers:
            self.trackers.log(event)
        due = self.every and (engine.step % self.every == 0 or engine.step == engine.total_steps)
        if not due or self.evaluate is None:
            return Verdict()
        before = self.best
        started = time.perf_counter()
        with undisturbed(engine):
            measured = self.evaluate(engine)
        found: dict[str, Any] = {
            "event": "eval",
            "step": engine.step,
            "total": engine.total_steps,
            "metrics": {name: score.value for name, score in measured.scores.items()},
            "shown": [name for name in HEADLINE if name in measured.scores],
        }
        verdict = Verdict()
        if self.keeper:
            judged = self.keeper.judge(engine.step, measured)
            found |= {"shown": list(self.keeper.metrics), "best": judged.best, "broken": list(judged.broken)}
            verdict = Verdict(stop=self.keeper.spent and engine.step < engine.total_steps, keep=judged.best)
        found["seconds"] = round(time.perf_counter() - started, 3)
        self.emit(found)
        if self.trackers:
            self.trackers.log(found)
        if engine.processes.main:
            # The best point before this one as well: until this step's checkpoint lies there, a kill goes back to it.
            self.evaluate.keep_only({point.step for point in (before, self.best) if point} | {engine.step})
        return verdict

    def finish(self, engine: Engine, checkpoints: Checkpoints) -> None:
        """Give the model the weights of the best point; called by every process together, after the last step.

        Raises:
            DataError: the checkpoint of that point is gone or cannot be read.
        """
        best = self.best
        if self.keeper and engine.ended:
            waited = f"{self.keeper.waited} evaluations in a row without a better {self.keeper.metric}"
            self.emit({"event": "note", "text": f"ended after step {engine.step} of {engine.total_steps}: {waited}"})
        if best is not None and best.step != engine.step:
            checkpoints.restore_weights(engine, best.step)
            self.emit({"event": "note", "text": f"the weights of step {best.step} become the model: {_said(best)}"})
        elif self.keeper is not None and best is None:
            broken = ", ".join(condition.text for condition in self.keeper.conditions)
            text = f"no evaluation satisfied {KEY}.subject_to ({broken}): the model of the last step is saved"
            self.emit({"event": "warning", "text": text})
        if self.evaluate is not None and engine.processes.main:
            self.evaluate.keep_only({engine.step if best is None else best.step})

    def close(self) -> None:
        """End the trackers' runs; safe at any moment."""
        if self.trackers:
            self.trackers.close()

    def state_dict(self) -> dict[str, Any]:
        """The best point so far."""
        return self.keeper.state_dict() if self.keeper else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`'s result."""
        if self.keeper:
            self.keeper.load_state_dict(state)


def _said(best: Best) -> str:
    return f"{best.metric} {best.value:.4g}"


@contextmanager
def undisturbed(engine: Engine) -> Iterator[None]:
    """Evaluation mode for a while; training afterwards goes on as if nothing had been."""
    devices = [engine.device] if engine.device.type == "cuda" else []
    training = engine.forward_model.training
    engine.forward_model.eval()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        engine.forward_model.train(training)
