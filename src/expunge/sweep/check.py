"""What can be refused before the first trial: keys, values and combinations that no run takes, and unusable rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from expunge.errors import ExpungeError, UsageError
from expunge.sweep.plan import Sweep
from expunge.sweep.space import Dimension

FIXED = ("kind", "output_dir", "device", "sweep", "data", "eval", "model.model_name_or_path", "model.from_scratch")
"""Keys, or sections, that are alike in all trials: what is compared is what method and settings do to one task."""
MOST_COMBINATIONS = 64
"""Of choices that are tried out without running anything."""


def check_keys(space: Sequence[Dimension]) -> None:
    """Refuse to search what makes trials incomparable.

    Raises:
        UsageError: such a key.
    """
    for dimension in space:
        if any(dimension.key == key or dimension.key.startswith(f"{key}.") for key in FIXED):
            raise UsageError(
                f"{dimension.key} cannot be searched: trials must start, forget and be measured alike",
                hint="one sweep for each of its values",
            )


def check_recipes(sweep: Sweep) -> None:
    """Refuse keys that a recipe does not have and values they cannot take.

    Raises:
        UsageError: the recipe's own, with the nearest key.
    """
    found = [sweep.given(params) for params in combinations(sweep.space)]
    given = found[0]
    if given.recipe.kind != "unlearn":
        raise UsageError(f"this recipe says kind: {given.recipe.kind}", hint="a sweep is over a recipe that unlearns")
    if given.recipe.model.model_name_or_path is None:
        raise UsageError("no model given", hint="set model.model_name_or_path=FOLDER_OR_HUB_ID")
    if sweep.prune and not given.recipe.train.eval_every:
        raise UsageError(
            "--prune needs evaluations during training", hint="set train.eval_every, e.g. to a tenth of the steps"
        )
    if sweep.prune and len(sweep.goal.objectives) > 1:
        raise UsageError("--prune works with one metric", hint="leave it out, or give one --minimise or --maximise")


def check_methods(sweep: Sweep) -> None:
    """Refuse methods and wrappers that do not take these values, and rows that the first combination cannot use.

    Raises:
        ExpungeError: what the run would say, and for which combination.
    """
    from expunge import api
    from expunge.train.start import select

    first, *_ = found = list(combinations(sweep.space))
    for params in found:
        try:
            select(sweep.given(params).recipe)
        except ExpungeError as error:
            error.message += f" (with {', '.join(sweep.changes(params))})"
            raise
    api.validate(sweep.settings, *sweep.changes(first))


def combinations(space: Sequence[Dimension]) -> Iterator[dict[str, Any]]:
    """Every combination of choices (the first `MOST_COMBINATIONS`), each with numbers all low, all high and between."""
    choices = [dimension for dimension in space if dimension.is_choice]
    numbers = [dimension for dimension in space if not dimension.is_choice]
    for picked in itertools.islice(itertools.product(*(one.values for one in choices)), MOST_COMBINATIONS):
        params = {one.key: value for one, value in zip(choices, picked, strict=True)}
        for probe in range(3 if numbers else 1):
            yield params | {one.key: one.probes[min(probe, len(one.probes) - 1)] for one in numbers}
