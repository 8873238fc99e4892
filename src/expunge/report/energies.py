"""Energies of prompts, and the guard's threshold where a run has one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from expunge.errors import DataError
from expunge.evals.suites.guard_sheet import RATE, calibrate
from expunge.metrics.energy import prompt_energy
from expunge.metrics.ragged import Array
from expunge.report.collect import EvaluatedRun
from expunge.report.figures.energies import Strip
from expunge.report.numbers import percent

GUARD_FILE = "energy_guard.json"

_STRIPS = (
    ("forget", "forget, as trained", "forget"),
    ("forget_paraphrased", "forget, in other words", "forget"),
    ("retain", "retain", "retain"),
    ("neighbours", "neighbours (kept)", "retain"),
)


class GuardFacts(NamedTuple):
    """A guard's threshold on the energy of the last prompt token, and what to say about it."""

    threshold: float | None
    """A prompt whose energy is above it is refused; None where the guard there is does not decide by this energy."""
    note: str


def energies(run: EvaluatedRun, split: str) -> Array:
    """(R,) energy of each row's last prompt token, in the order of the split's rows; higher = unknown."""
    return prompt_energy(run.view(split).answers("lse", "with_eos"))


def prompt_energies(run: EvaluatedRun, split: str) -> dict[int, float]:
    """Row number -> energy; empty where the split was not traced."""
    if split not in run.splits:
        return {}
    return dict(zip(run.view(split).row.tolist(), energies(run, split).tolist(), strict=True))


def strips(run: EvaluatedRun) -> tuple[list[Strip], list[str]]:
    """The kinds of questions that were measured, and the names of those that were not."""
    found = [Strip(label, side, energies(run, split)) for split, label, side in _STRIPS if split in run.splits]
    return found, [label for split, label, _ in _STRIPS if split not in run.splits]


def guard_of(run: EvaluatedRun) -> GuardFacts:
    """The guard saved beside the run's model, else the one that its `guard.*` metrics were computed with.

    Raises:
        DataError: the file is there but is not a guard.
    """
    path = run.path / "model" / GUARD_FILE
    if path.exists():
        return _saved(path, run)
    if "guard.over_refusal_rate" not in run.scores:
        return GuardFacts(None, f"No guard was calibrated; `expunge guard calibrate {run.path}` makes one.")
    guard = calibrate({split: run.view(split) for split in run.splits})
    return GuardFacts(guard.threshold, f"The threshold is the one measured here, for {percent(RATE)} false refusals.")


def _saved(path: Path, run: EvaluatedRun) -> GuardFacts:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        threshold, rate = float(found["threshold"]), percent(float(found["rate"]))
        statistic, temperature, digest = str(found["statistic"]), float(found["temperature"]), found["model_digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        again = f"run `expunge guard calibrate {run.path}` again"
        raise DataError(f"{path} is not a saved guard ({error})", hint=again) from error
    if digest != run.model_digest:
        return GuardFacts(None, "The guard saved beside the model was calibrated for another model; it is not drawn.")
    if statistic != "last" or temperature != 1:
        how = f"{statistic} energy at temperature {temperature:g}"
        return GuardFacts(None, f"The saved guard decides by the {how}; its threshold has no place on this axis.")
    return GuardFacts(threshold, f"The threshold is that of the guard saved beside the model ({rate} false refusals).")
