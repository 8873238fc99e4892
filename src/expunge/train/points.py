"""A run's evaluations of its own model between two steps: the code of `expunge eval`, below `RUN/watch`."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from expunge.config.schema import Recipe
from expunge.data.template import Template
from expunge.evals.jobs import plan_jobs
from expunge.evals.run import EvalOptions, build_suite, evaluate_live, suite_template
from expunge.evals.sample import require_sampled
from expunge.evals.suite import Measured, Suite
from expunge.models.load import context_length, require_vocabulary, vocabulary_size
from expunge.runs.run import checkpoint_path, checkpoint_paths
from expunge.train.engine import Engine

METRICS = "metrics.json"


def points_of(
    recipe: Recipe,
    folder: Path,
    *,
    model: Any,
    tokenizer: Any,
    template: Template,
    progress: Callable[[dict[str, Any]], None],
) -> Points | None:
    """The evaluations that a recipe asks for while it trains, its rows checked; None where it asks for none.

    Raises:
        ExpungeError: a suite, or rows of it, that cannot be used.
    """
    if recipe.train.eval_every is None:
        return None
    suite = build_suite(recipe.eval.suite, recipe, EvalOptions())
    if suite.template is not None:
        template = suite_template(suite, recipe, tokenizer)
    points = Points(folder, recipe, suite, tokenizer=tokenizer, template=template, progress=progress)
    points.require_usable(model)
    return points


class Points:
    """Evaluations while training.

    `metrics.json` of every point stays; tables, which hold text and are large, only where they are kept.

    Args:
        folder: `RUN/watch`.
        recipe: where rows come from, and the budget of a forward pass: the one of training where it says `auto`, as a
            speed measured anew could cut the texts otherwise and so round otherwise in a resumed run.
        suite: what is measured.
        tokenizer: the model's.
        template: how a conversation becomes tokens.
        progress: receives the events of the passes.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        suite: Suite,
        *,
        tokenizer: Any,
        template: Template,
        progress: Callable[[dict[str, Any]], None],
    ) -> None:
        self.folder, self.recipe, self.suite = folder, recipe, suite
        self.tokenizer, self.template, self.progress = tokenizer, template, progress

    def require_usable(self, model: Any) -> None:
        """Encode the suite's rows once: what is wrong with them is better said before training.

        Raises:
            DataError: a row that does not fit the model, or lacks a column.
            UsageError: a split to sample from that the suite does not ask.
        """
        if self.recipe.eval.sampling is not None:
            require_sampled(self.suite, self.recipe.eval.sampling)
        plan = plan_jobs(self.suite, self.template, max_length=context_length(model.config) or 1 << 30)
        require_vocabulary(plan.dataset, self.tokenizer, size=vocabulary_size(model))

    def __call__(self, engine: Engine) -> Measured:
        """Measure the engine's model; called by every process together, and the same on each."""
        asked = self.recipe.eval.token_budget
        found = evaluate_live(
            engine.model,
            self.tokenizer,
            self.template,
            self.recipe,
            folder=checkpoint_path(self.folder, engine.step),
            options=EvalOptions(token_budget=engine.token_budget if asked == "auto" else asked),
            suite=self.suite,
            lockstep=engine.sharded,
            progress=self.progress,
        )
        return Measured(found.scores, found.skipped)

    def keep_only(self, steps: Collection[int]) -> None:
        """Drop the tables of all other points; called by the main process."""
        for step, folder in checkpoint_paths(self.folder).items():
            if step not in steps:
                for path in folder.iterdir():
                    if path.name != METRICS:
                        path.unlink()
