"""The energy guard on a suite's own splits: how well energy separates, and how often a calibrated guard refuses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from expunge.evals.suites.tofu_sheet import Rule, Sheet, Views
from expunge.metrics.energy import prompt_energy
from expunge.metrics.guard import (
    OTHER_WORDING,
    calibrates,
    conformal_threshold,
    needed_prompts,
    percent,
    prompt_key,
    refusal_rate,
)
from expunge.metrics.leak_names import TEMPERED_ENERGY, energy_name
from expunge.metrics.ragged import Array
from expunge.metrics.score import Score
from expunge.metrics.view import SplitView
from expunge.runs import prompt_order

RATE = 0.02
"""False-refusal rate that guards are calibrated for unless said otherwise."""

RULES: dict[str, Rule] = {
    "energy.auroc": Rule("higher", 1.0),
    TEMPERED_ENERGY: Rule("higher", 1.0),
    "energy.fpr95": Rule("lower", 0.0),
    "energy.auroc_paraphrase": Rule("higher", 1.0),
    "guard.refusal_rate": Rule("higher", 1.0),
    "guard.refusal_rate_paraphrase": Rule("higher", 1.0),
    "guard.refusal_rate_multi_hop": Rule("higher", 1.0),
    "guard.over_refusal_rate": Rule("lower", 0.0),
    "guard.over_refusal_paraphrase": Rule("lower", 0.0),
    "guard.over_refusal_neighbours": Rule("lower", 0.0),
    "guard.over_refusal_holdout": Rule("lower", 0.0),
}

_OVER_REFUSAL = "guard.over_refusal_rate"
_TO_REFUSE = {
    "guard.refusal_rate": "forget",
    "guard.refusal_rate_paraphrase": "forget_paraphrased",
    "guard.refusal_rate_multi_hop": "forget_multi_hop",
}
_TO_ANSWER = {
    "guard.over_refusal_paraphrase": OTHER_WORDING,
    "guard.over_refusal_neighbours": "neighbours",
    "guard.over_refusal_holdout": "holdout",
}


class Calibrated(NamedTuple):
    """A guard's threshold and the energies of the retain prompts that did not set it."""

    threshold: float
    """A prompt whose energy is above it is refused."""
    calibration: frozenset[bytes]
    """Keys of the prompts that set it."""
    test: Array
    """Energies of the other half."""


def energy(view: SplitView, temperature: float = 1.0) -> Array:
    """(R,) energy of each row's prompt, at 1 or one of the view's temperatures; higher = unknown."""
    return prompt_energy(view.lse_at(temperature), temperature=temperature)


def fill_guard(sheet: Sheet, *, rate: float = RATE, seed: int = prompt_order.SEED) -> None:
    """Add `energy.*` and `guard.*` for whichever of their splits the evaluation has.

    A guard is calibrated on half of the distinct retain prompts (`calibration_prompts`) and tested on everything
    else: prompts that set the threshold never count as wrongly refused or answered. Where there are too few of them,
    every `guard.*` is skipped with the reason. A purged trace gives the same numbers.

    Args:
        sheet: receives estimates, scores and reasons.
        rate: false-refusal rate the threshold is calibrated for, in (0, 1).
        seed: of the split into a calibration and a test half.

    Raises:
        MetricError: an energy is not a finite number.
    """
    _separation(sheet)
    if "forget" not in sheet.views or "retain" not in sheet.views:
        return
    asked = {name: split for name, split in (_TO_REFUSE | _TO_ANSWER).items() if split in sheet.views}
    if reason := obstacle(sheet.views, rate=rate, seed=seed):
        sheet.skipped.update(dict.fromkeys([_OVER_REFUSAL, *asked], reason))
        return
    guard = calibrate(sheet.views, rate=rate, seed=seed)
    sheet.extra[_OVER_REFUSAL] = _rate(_OVER_REFUSAL, guard.test, guard.threshold, len(guard.test))
    for name, split in asked.items():
        found = _by_prompt([sheet.views[split]], seed)
        # A prompt that set the threshold is answered by construction: it says nothing of the others of its kind.
        known: frozenset[bytes] = guard.calibration if name in _TO_ANSWER else frozenset()
        energies = np.array([value for prompt, value in found.items() if prompt not in known])
        if len(energies):
            sheet.extra[name] = _rate(name, energies, guard.threshold, len(found))
        else:
            sheet.skipped[name] = f"each of the {len(found)} {split} prompts calibrates the guard"


def _rate(name: str, energies: Array, threshold: float, total: int) -> Score:
    direction, ideal = RULES[name]
    return refusal_rate(energies, threshold, direction=direction, ideal=ideal, n_total=total)


def _separation(sheet: Sheet) -> None:
    stored = dict.fromkeys(temperature for view in sheet.views.values() for temperature in view.temperatures)
    for temperature in (1.0, *stored):
        sheet.auc(energy_name(temperature), "forget", "retain", partial(energy, temperature=temperature))
    sheet.fpr95("energy.fpr95", "retain", "forget", lambda view: np.negative(energy(view)))
    if OTHER_WORDING in sheet.views:
        sheet.auc("energy.auroc_paraphrase", "forget_paraphrased", OTHER_WORDING, energy)


def calibrate(views: Views, *, rate: float = RATE, seed: int = prompt_order.SEED) -> Calibrated:
    """The threshold that a suite's retain prompts give: of their distinct prompts in a seeded order, the first half.

    Args:
        views: splits by name; see `calibration_prompts`.
        rate: false-refusal rate, in (0, 1).
        seed: of the order.

    Raises:
        MetricError: too few prompts for the rate, or an energy that is not a finite number.
    """
    energies = calibration_prompts(views, seed=seed)
    ordered = sorted(energies)
    half = len(ordered) // 2
    values = np.array([energies[key] for key in ordered])
    return Calibrated(conformal_threshold(values[:half], rate=rate), frozenset(ordered[:half]), values[half:])


def obstacle(views: Views, *, rate: float = RATE, seed: int = prompt_order.SEED) -> str | None:
    """Why `calibrate` cannot give a threshold at this rate; None where it can."""
    if any(_unknown(view, seed) for view in views.values()):
        return "the prompts were purged, and with them which half of them the guard is calibrated on"
    there, needed = len(calibration_prompts(views, seed=seed)) // 2, needed_prompts(rate)
    if there < needed:
        return (
            f"a guard for {percent(rate)} false refusals is calibrated on {needed} retain prompts or more;"
            f" half of those here are {there}"
        )
    return None


def calibration_prompts(views: Views, *, seed: int = prompt_order.SEED) -> dict[bytes, float]:
    """Key -> energy, each distinct prompt of `retain` and `retain_*` once, but for `retain_paraphrased`.

    Where rows share a prompt, that of the alphabetically first split's first row counts, so that the result does not
    depend on the order of the tables. Raw texts have no prompt.
    """
    return _by_prompt([views[name] for name in sorted(views) if calibrates(name)], seed)


def _unknown(view: SplitView, seed: int) -> bool:
    """Whether a purge removed the prompts and left no order to take them in, or one of another seed."""
    kept = prompt_order.COLUMN in view.trace.column_names and seed == prompt_order.SEED
    return view.trace["prompt"].null_count > 0 and not kept


def _by_prompt(views: Sequence[SplitView], seed: int) -> dict[bytes, float]:
    found: dict[bytes, float] = {}
    for view in views:
        keys = _keys(view, seed)
        for place, value in zip(view.answer, energy(view), strict=True):
            if (key := keys[place]) is not None:
                found.setdefault(key, float(value))
    return found


def _keys(view: SplitView, seed: int) -> list[bytes | None]:
    """What each row's prompt is told apart and ordered by; None for a raw text."""
    if view.trace["prompt"].null_count:
        numbers = view.trace[prompt_order.COLUMN].to_pylist()
        return [None if number is None else int(number).to_bytes(4, "big") for number in numbers]
    return [prompt_key(prompt, seed=seed) if prompt else None for prompt in view.trace["prompt"].to_pylist()]
