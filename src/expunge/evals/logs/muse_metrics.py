"""MUSE's numbers from its own logs, under its own names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from expunge.errors import MetricError
from expunge.evals.logs.muse import MEASURES, PARTS, SIDES
from expunge.evals.suite import Measured, RowValues
from expunge.evals.suites.tofu_sheet import CHANCE, NO_REFERENCE, placed
from expunge.metrics.estimate import Estimate, auc_estimate, mean_estimate
from expunge.metrics.logged import LoggedSplit
from expunge.metrics.membership import privleak
from expunge.metrics.score import Direction, Score

PERCENT = 100.0
HEADLINE = "mean_rougeL"
ATTACK = "forget_holdout_Min-40%"
"""The AUC that PrivLeak is made of."""
PRIVLEAK = "privleak"

Views = Mapping[str, LoggedSplit]
Estimates = dict[str, Estimate]


@dataclass
class _Sheet:
    """What one log gives."""

    estimates: Estimates
    rows: dict[str, RowValues] = field(default_factory=dict)


def measure_muse(
    views: Views, alone: Mapping[str, float], *, reference: tuple[Views, Mapping[str, float]] | None
) -> Measured:
    """Every number of MUSE that a log holds or that follows from its rows.

    `<part>` is verbmem_f, knowmem_f or knowmem_r, in percent: 100 times the mean ROUGE-L F1 of its answers.
    `mean_` and `max_` of each ROUGE score as in `out.json`, prefixed by the part where a log holds several.
    `<a>_<b>_<attack>` as in `auc.json`: P(a text of b scores below one of a), ties half, on loss-like scores, so that
    1 means that b looks more like training data. `privleak = 100 (A - A_ref) / A_ref` with A the AUC of forget against
    holdout by Min-40 %.

    Args:
        views: the log's rows.
        alone: aggregates that came without rows; they are reported as they are, with n = 0.
        reference: the retrained model's log: its rows and lone aggregates.

    Returns:
        Scores; the ideal is the retrained model's value, that of an AUC without one 0.5, that of `privleak` 0. The
        rows of an AUC are those of b.

    Raises:
        MetricError: the retrained model's AUC is 0, so that PrivLeak is undefined.

    Source:
        MUSE (arXiv 2407.06460), section 3.
    """
    sheet = _sheet(views, alone)
    found, theirs = sheet.estimates, {} if reference is None else _sheet(*reference).estimates
    skipped: dict[str, str] = {}
    if ATTACK in found and ATTACK in theirs:
        found[PRIVLEAK] = _privleak(found[ATTACK], theirs[ATTACK].value)
    elif ATTACK in found:
        skipped[PRIVLEAK] = NO_REFERENCE if reference is None else f"the reference has no {ATTACK}"
    scores: dict[str, Score] = {}
    for name, estimate in found.items():
        scores[name] = estimate.score(_direction(name, views), ideal=_ideal(name, theirs))
    return Measured(scores, skipped, sheet.rows)


def _sheet(views: Views, alone: Mapping[str, float]) -> _Sheet:
    sheet = _Sheet({name: Estimate(value, None, 0, 0) for name, value in alone.items()})
    parts = [part for part in PARTS if part in views]
    # The names of `out.json` say nothing of the part: a log of several parts has it as a prefix.
    several = len(parts) > 1 or any(name.startswith(PARTS) for name in alone)
    for part in parts:
        prefix = f"{part}." if several else ""
        for measure in MEASURES:
            column = views[part].column(views[part].recorded[measure])
            mean = mean_estimate(column, name=f"{part}.mean_{measure}", allow_missing=True)
            sheet.estimates[f"{prefix}mean_{measure}"] = mean
            sheet.estimates[f"{prefix}max_{measure}"] = Estimate(
                float(np.nanmax(column.values)), None, mean.n, mean.n_total
            )
            sheet.rows[f"{prefix}mean_{measure}"] = RowValues(part, views[part].row, column.values, column.valid)
    _headlines(sheet, parts)
    _aucs(sheet, views)
    return sheet


def _headlines(sheet: _Sheet, parts: list[str]) -> None:
    """The numbers of MUSE's table; a lone `mean_rougeL` of no known part has none."""
    named = {part: f"{part}.{HEADLINE}" for part in PARTS if f"{part}.{HEADLINE}" in sheet.estimates}
    if len(parts) == 1 and HEADLINE in sheet.estimates:
        named[parts[0]] = HEADLINE
    for part, name in named.items():
        sheet.estimates[part] = _times(sheet.estimates[name], PERCENT)
        if name in sheet.rows:
            rows = sheet.rows[name]
            sheet.rows[part] = RowValues(rows.split, rows.row, PERCENT * rows.values, rows.valid)


def _aucs(sheet: _Sheet, views: Views) -> None:
    sides = [side for side in SIDES if side in views]
    for first in sides:
        for second in sides:
            for attack in views[first].recorded:
                if attack in views[second].recorded:
                    name = f"{first}_{second}_{attack}"
                    low, high = (views[side].column(-views[side].recorded[attack]) for side in (first, second))
                    sheet.estimates[name] = auc_estimate(high, low, name=name, allow_missing=True)
                    sheet.rows[name] = RowValues(second, views[second].row, placed(high, low), high.valid)


def _privleak(attack: Estimate, reference: float) -> Estimate:
    if reference == 0:
        raise MetricError(
            f"{ATTACK} of the reference is 0, so PrivLeak is undefined",
            hint="the reference must not have seen the forget rows; check which log was given",
        )
    # MUSE's AUC is high where holdout texts look more familiar: 1 minus the one that `privleak` takes.
    value = privleak(1 - attack.value, 1 - reference)
    draws = None if attack.draws is None else np.array([privleak(1 - float(a), 1 - reference) for a in attack.draws])
    return Estimate(value, draws, attack.n, attack.n_total)


def _times(estimate: Estimate, factor: float) -> Estimate:
    draws = None if estimate.draws is None else factor * estimate.draws
    return Estimate(factor * estimate.value, draws, estimate.n, estimate.n_total)


def _ideal(name: str, retrained: Estimates) -> float | None:
    if name == PRIVLEAK:
        return 0.0
    if name in retrained:
        return retrained[name].value
    return CHANCE if _is_auc(name) else None


def _is_auc(name: str) -> bool:
    return name.startswith(tuple(f"{side}_" for side in SIDES))


def _direction(name: str, views: Views) -> Direction:
    if name == PRIVLEAK or _is_auc(name):
        return "match"
    retain = name.startswith("knowmem_r") or ("knowmem_r" in views and not name.startswith(PARTS))
    return "higher" if retain else "lower"
