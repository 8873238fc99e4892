"""Print an evaluation: a table for people, JSON for programs, an exit code for pipelines."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from expunge.cli.conditions import MET
from expunge.cli.output import interval, note, number, print_json, print_table
from expunge.metrics.conditions import Condition, check

if TYPE_CHECKING:
    from expunge.metrics.score import Score

_MOST_NAMES = 6
"""Names on one line; more are counted."""
_LIST = re.compile(rf"[\w.]+(?:, (?!not )[\w.]+){{{_MOST_NAMES},}}")
"""Names in a reason, before its `, not measured here`."""


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
        for line in skipped_lines(scores, evaluation.skipped):
            note(line)
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


def skipped_lines(scores: Collection[str], skipped: Mapping[str, str]) -> list[str]:
    """What was not measured, a line for each reason; long lists are cut, and `--json` has all of them.

    Args:
        scores: names of what was measured.
        skipped: metric -> why it is absent.

    Returns:
        `skipped forget.a, forget.b: why`, or `skipped forget.*: why` where nothing of that split was measured, and all
        of it for one reason.
    """
    reasons: dict[str, set[str]] = {}
    for name, reason in skipped.items():
        reasons.setdefault(_split(name), set()).add(reason)
    measured = {_split(name) for name in scores}
    whole = {split for split, why in reasons.items() if split and len(why) == 1 and split not in measured}
    names = Counter(_split(name) for name in skipped)
    grouped: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        split = _split(name)
        grouped.setdefault(reason, []).append(f"{split}.*" if split in whole and names[split] > 1 else name)
    return [f"skipped {_listed(dict.fromkeys(each))}: {_shortened(reason)}" for reason, each in grouped.items()]


def _split(name: str) -> str:
    """What stands before a metric's name; empty where nothing does."""
    return name.rpartition(".")[0].partition(".")[0]


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_MOST_NAMES])
    return f"{shown} and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else shown


def _shortened(reason: str) -> str:
    """A reason that lists names, cut like a list of them."""
    return _LIST.sub(lambda found: _listed(found[0].split(", ")), reason)


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
