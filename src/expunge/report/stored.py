"""`metrics.json` as it lies in an evaluation, each number checked: what somebody edited must not become a verdict."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

from expunge.errors import DataError, UsageError
from expunge.metrics.score import Direction, Score


class Metrics(NamedTuple):
    """What an evaluation measured."""

    scores: Mapping[str, Score]
    skipped: Mapping[str, str]
    """Metric -> why it is absent."""
    reference: Mapping[str, Any] | None
    """The retrained run it was computed with."""
    start: Mapping[str, Any] | None
    """The starting run, likewise."""


def read_metrics(folder: Path, *, run: Path) -> Metrics:
    """The metrics of an evaluation.

    Args:
        folder: the evaluation.
        run: its run, for the command that mends it.

    Raises:
        UsageError: there are only tables.
        DataError: cut, edited, or with a value that is not a finite number; nothing is left out silently.
    """
    path, again = folder / "metrics.json", f"run `expunge metrics {run}`"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        scores = {name: _score(name, entry) for name, entry in raw["metrics"].items()}
        skipped = {name: str(why) for name, why in raw["skipped"].items()}
        return Metrics(scores, skipped, _other(raw, "reference"), _other(raw, "start"))
    except FileNotFoundError:
        raise UsageError(f"{folder} has tables but no metrics.json", hint=again) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not what `expunge eval` writes ({error})", hint=again) from error


def _score(name: str, entry: Mapping[str, Any]) -> Score:
    score = Score(**entry)
    for field in ("value", "low", "high", "ideal"):
        value = getattr(score, field)
        if value is None and field != "value":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name}: {field} is {value!r}, not a finite number")
    for field in ("n", "n_total"):
        if type(count := getattr(score, field)) is not int:
            raise ValueError(f"{name}: {field} is {count!r}, not a number of rows")
    if score.direction not in get_args(Direction):
        raise ValueError(f"{name}: direction is {score.direction!r}")
    return score


def _other(raw: Mapping[str, Any], key: str) -> Mapping[str, Any] | None:
    found = raw.get(key)
    if found is not None and not isinstance(found, dict):
        raise ValueError(f"{key} is {found!r}")
    return found
