"""LUME's scores, and the one number that ranked SemEval-2025 task 4.

Three tasks (creative documents, invented biographies, real ones), each asked in two ways: go on with a beginning
(regurgitation) and answer a question (knowledge), on the forget and on the retain set: twelve parts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from expunge.errors import MetricError
from expunge.metrics.estimate import Column, Estimate, harmonic_estimate, mean_estimate
from expunge.metrics.ragged import Array

Kind = Literal["regurgitation", "knowledge"]

_KINDS: dict[str, Kind] = {"sc": "regurgitation", "qa": "knowledge"}
_ID = re.compile(r".*(?P<kind>sc|qa)\d")


def lume_kind(row_id: str) -> Kind:
    """How a row of LUME is scored, read off its id: `...sc1` is a beginning to go on with, `...qa0` a question.

    Raises:
        MetricError: the id ends otherwise.
    """
    match = _ID.fullmatch(row_id)
    if match is None:
        raise MetricError(
            f"id {row_id!r} does not say how its row is scored",
            hint="ids of LUME end in sc (a beginning) or qa (a question) and one digit",
        )
    return _KINDS[match["kind"]]


def knowledge(
    references: Sequence[str],  # R texts
    outputs: Sequence[str],  # R texts
) -> Array:  # (R,)
    """1 where output and reference are equal but for case and white space around them, else 0.

    One word more is wrong, also a full stop: a model that was not trained on the form of the answers scores 0
    whatever it knows.

    Returns:
        (R,) 0 or 1, not reduced.

    Raises:
        MetricError: there are not as many outputs as references.

    Source:
        LUME (arXiv 2502.15097); SemEval-2025 task 4 (arXiv 2504.02883) and its released evaluation.
    """
    if len(references) != len(outputs):
        raise MetricError(
            f"answers are compared row by row, found {len(references)} references and {len(outputs)} outputs",
            hint="give one output per reference, in the same order",
        )
    pairs = zip(references, outputs, strict=True)
    return np.array([ours.strip().lower() == theirs.strip().lower() for ours, theirs in pairs], dtype=np.float64)


def task_aggregate(
    forget: Mapping[str, Column],
    retain: Mapping[str, Column],
    *,
    allow_missing: bool = False,
) -> Estimate:
    """Harmonic mean of every `1 - mean` of the forget parts and every mean of the retain parts.

    One part at its worst (nothing of it forgotten, nothing of it kept) makes the whole 0.

    Args:
        forget: part -> one score per row, e.g. `Task1 regurgitation`; six of them in the published aggregate.
        retain: the same parts of the retain set.
        allow_missing: accept more than 1 % of rows without anything to measure.

    Returns:
        In [0, 1], higher is better; each part's rows are resampled.

    Raises:
        MetricError: there is no part, the two sets have different ones (the mean would weigh them otherwise than the
            published one), or as `mean_estimate`.

    Source:
        SemEval-2025 task 4 (arXiv 2504.02883) and its released evaluation.
    """
    if odd := sorted(forget.keys() ^ retain.keys()):
        raise MetricError(
            f"forget and retain set have different parts ({', '.join(odd)} in only one)",
            hint="measure every task in both ways on both sets",
        )
    kept = {part: _mean(f"retain {part}", column, allow_missing) for part, column in retain.items()}
    lost = {part: _mean(f"forget {part}", column, allow_missing) for part, column in forget.items()}
    parts = {f"retain {part}": [estimate] for part, estimate in kept.items()}
    parts |= {f"forget {part}": [_complement(estimate)] for part, estimate in lost.items()}
    return harmonic_estimate(parts)


def membership_score(auc: Estimate) -> Estimate:
    """`1 - 2 |AUC - 0.5|` of the loss attack: 1 where members cannot be told apart, 0 where they all can.

    An AUC below 0.5 costs as much as one above it. Its interval is that of the value, so it never passes 1.

    Args:
        auc: of `membership.loss_score` on members against non-members (`auc_estimate`).

    Source:
        SemEval-2025 task 4 (arXiv 2504.02883) and its released evaluation.
    """
    draws = None if auc.draws is None else 1 - 2 * np.abs(auc.draws - 0.5)
    return auc._replace(value=1 - 2 * abs(auc.value - 0.5), draws=draws)


def lume_score(*, tasks: Estimate, membership: Estimate, utility: Estimate) -> Estimate:
    """The arithmetic mean of the three, which ranked the task's submissions.

    A model that lost everything still gets a third of its membership score, so read the three beside it; the ranking
    left out models whose utility fell below three quarters of the starting model's.

    Args:
        tasks: `task_aggregate`.
        membership: `membership_score`.
        utility: accuracy on MMLU.

    Returns:
        In [0, 1], higher is better; an interval where all three have draws.

    Source:
        SemEval-2025 task 4 (arXiv 2504.02883) and its released evaluation.
    """
    parts = (tasks, membership, utility)
    return Estimate(
        sum(part.value for part in parts) / len(parts),
        _mean_draws([part.draws for part in parts]),
        sum(part.n for part in parts),
        sum(part.n_total for part in parts),
    )


def _mean(name: str, column: Column, allow_missing: bool) -> Estimate:
    return mean_estimate(column, name=name, allow_missing=allow_missing)


def _complement(part: Estimate) -> Estimate:
    return part._replace(value=1 - part.value, draws=None if part.draws is None else 1 - part.draws)


def _mean_draws(parts: Sequence[Array | None]) -> Array | None:
    known = [draws[np.isfinite(draws)] for draws in parts if draws is not None]
    if len(known) < len(parts):
        return None
    # The parts have no row in common, so any pairing of their draws is as good as another.
    shortest = min(map(len, known))
    return np.asarray(np.mean([draws[:shortest] for draws in known], axis=0))
