"""Print an evaluation: a table for people, JSON for programs, an exit code for pipelines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from expunge.cli.conditions import MET
from expunge.cli.output import interval, note, number, print_json, print_table
from expunge.metrics.conditions import Condition, check

if TYPE_CHECKING:
    from expunge.metrics.score import Score


def report(evaluation: Any, conditions: Sequence[Condition], *, as_json: bool) -> None:
    """Print the scores and end with exit code 5 where a condition is met.

    Args:
        evaluation: path, suite, profile, scores and skipped of `expunge eval` or `expunge metrics`.
        conditions: parsed `--fail-if` options.
        as_json: print JSON instead of the table.
    """
    scores: dict[str, Score] = evaluation.scores
    if as_json:
        print_json(_as_json(evaluation))
    else:
        _print_scores(scores)
        for reason, names in _by_reason(evaluation.skipped).items():
            note(f"skipped {', '.join(names)}: {reason}")
        note(f"{evaluation.suite} ({evaluation.profile}): {evaluation.path}")
    met = [item for item in check(conditions, scores, evaluation.skipped) if item.met]
    for item in met:
        note(f"condition met: {item.condition} (measured {number(item.value)})")
    if met:
        raise typer.Exit(MET)


def _as_json(evaluation: Any) -> dict[str, Any]:
    return {
        "path": str(evaluation.path),
        "suite": evaluation.suite,
        "profile": evaluation.profile,
        "metrics": {name: score.to_json() for name, score in evaluation.scores.items()},
        "skipped": dict(evaluation.skipped),
    }


def _by_reason(skipped: Mapping[str, str]) -> dict[str, list[str]]:
    """Reason -> the metrics it holds for."""
    grouped: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        grouped.setdefault(reason, []).append(name)
    return grouped


def _print_scores(scores: dict[str, Score]) -> None:
    rows = [
        (
            name,
            number(score.value),
            interval(score),
            score.direction if score.ideal is None else number(score.ideal),
            str(score.n) if score.n == score.n_total else f"{score.n}/{score.n_total}",
        )
        for name, score in scores.items()
    ]
    print_table(("metric", "value", "95 % interval", "ideal", "n"), rows, right=("value", "n"))
