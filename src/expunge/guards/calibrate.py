"""Calibrate an energy guard for a run from its own rows, and measure what it does to what was to be forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from expunge.config.schema import SourceSpec
from expunge.data.example import Example, Turn, prompt_text
from expunge.data.source import load_examples
from expunge.errors import DataError, MetricError, UsageError
from expunge.guards.base import Subject, load_subject
from expunge.guards.energy import EnergyGuard, Progress, Settings, prompt_energies
from expunge.guards.record import Statistic
from expunge.metrics.bootstrap import draw_weights
from expunge.metrics.estimate import Column, auc_estimate, fpr95_estimate
from expunge.metrics.guard import needed_prompts, percent, refusal_rate
from expunge.metrics.score import Score
from expunge.runs.target import Target, find_target


class Separation(NamedTuple):
    """What the guard does to the prompts that were to be forgotten."""

    refusal_rate: Score
    """Share of distinct forget prompts that is refused."""
    auroc: Score
    """P(a forget prompt has a higher energy than a retain prompt)."""
    fpr95: Score
    """Share of forget prompts accepted by the threshold that accepts 95 % of the retain prompts."""


class Calibration(NamedTuple):
    """A guard that was calibrated and saved."""

    path: Path
    """`energy_guard.json` beside the model."""
    statistic: Statistic
    temperature: float
    rate: float
    """The false-refusal rate asked for."""
    threshold: float
    num_calibration: int
    """Distinct retain prompts that set the threshold."""
    over_refusal: Score
    """Share of the other half of the retain prompts that is refused."""
    forget: Separation | None
    """None where the target has no forget rows."""


class _Asked(NamedTuple):
    """A distinct prompt and whom it is about."""

    turns: tuple[Turn, ...]
    group: str | None


_Prompts = Mapping[str, _Asked]
"""Text -> prompt."""


def calibrate_guard(
    target: str | Path,
    settings: Settings | None = None,
    *,
    prompts: str | Path | None = None,
    template: str | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Calibrate on half of the distinct retain prompts, test on the other half, save beside the model.

    Args:
        target: a run directory, or a model folder (then with `prompts`).
        settings: rate, statistic, temperature, seed, refusals.
        prompts: a file of what the model should answer, in any accepted format, in place of the run's retain rows;
            of rows of raw text each text is a prompt.
        template: named profile instead of the run's template.
        device: in place of the run's.
        progress: receives one dict per event.

    Raises:
        UsageError: no folder to save in, no rows to calibrate on, or a setting that cannot be used.
        DataError: rows that cannot be read, or without a prompt.
        MetricError: too few distinct prompts for the rate, or an energy that is not a finite number.
    """
    asked = (settings or Settings()).checked()
    found = find_target(target)
    if not Path(found.model).is_dir():
        raise UsageError(
            f"{target} is not a folder, so no guard can be saved beside its model",
            hint="give a run directory, or download the model into a folder",
        )
    retain, forget = _retain(found, target, prompts), _forget(found)
    # Before the model is loaded: that may take minutes.
    if len(retain) // 2 < (needed := needed_prompts(asked.rate)):
        raise MetricError(
            f"a false-refusal rate of {percent(asked.rate)} needs {needed} calibration prompts and as many to test on:"
            f" {2 * needed} distinct retain prompts, there are {len(retain)}",
            hint="give more with --prompts FILE, or ask for a higher --rate",
        )
    subject = load_subject(found.model, found.recipe, template=template, device=device)
    kept = _energies(subject, retain, asked, progress)
    guard = EnergyGuard.from_energies(subject, kept, asked)
    gone = _energies(subject, forget, asked, progress)
    over = guard.record.over_refusal
    return Calibration(
        path=guard.save(Path(found.model)),
        statistic=asked.statistic,
        temperature=asked.temperature,
        rate=asked.rate,
        threshold=guard.record.threshold,
        num_calibration=guard.record.num_calibration,
        over_refusal=Score(over.value, over.low, over.high, over.n, over.n, 0.0, "lower"),
        forget=_separation(guard.record.threshold, _column(gone, forget, "forget"), _column(kept, retain, "retain"))
        if forget
        else None,
    )


def _retain(found: Target, target: str | Path, prompts: str | Path | None) -> _Prompts:
    if prompts is not None:
        rows = load_examples(SourceSpec(path=str(prompts)), tofu="", role="calibration").examples
        return _distinct(rows, origin=str(prompts), texts=True)
    if found.recipe is None or not found.recipe.data.retain:
        raise UsageError(
            f"{target} names no retain rows to calibrate on",
            hint="give prompts that the model should answer with --prompts FILE",
        )
    data = found.recipe.data
    loaded = load_examples(data.retain, tofu=data.tofu, role="retain")
    return _distinct(loaded.examples, origin=loaded.origin, texts=False)


def _forget(found: Target) -> _Prompts:
    if found.recipe is None or not found.recipe.data.forget:
        return {}
    data = found.recipe.data
    loaded = load_examples(data.forget, tofu=data.tofu, role="forget")
    # Documents to forget have no prompt to refuse.
    return _distinct([example for example in loaded.examples if example.turns], origin=loaded.origin, texts=False)


def _distinct(rows: Sequence[Example], *, origin: str, texts: bool) -> _Prompts:
    """Each distinct prompt once, where it comes first.

    Raises:
        DataError: there are rows, and none has a prompt; or a prompt is empty.
    """
    found: dict[str, _Asked] = {}
    for example in rows:
        turns = example.prompt or ((Turn("user", example.text),) if texts else ())
        if not turns:
            continue
        text = prompt_text(example) if example.prompt else example.text
        if not text.strip():
            raise DataError(f"{origin}: the prompt of row {example.row} is empty", hint="mend or remove that row")
        found.setdefault(text, _Asked(turns, example.group))
    if rows and not found:
        raise DataError(
            f"{origin} holds raw text, and a guard is calibrated on prompts",
            hint="give questions that the model should answer with --prompts FILE",
        )
    return found


def _energies(subject: Subject, prompts: _Prompts, settings: Settings, progress: Progress | None) -> dict[str, float]:
    values = prompt_energies(
        subject,
        [asked.turns for asked in prompts.values()],
        statistic=settings.statistic,
        temperature=settings.temperature,
        progress=progress,
    )
    return dict(zip(prompts, values.tolist(), strict=True))


def _column(energies: Mapping[str, float], prompts: _Prompts, label: str) -> Column:
    values = np.array(list(energies.values()))
    weights = draw_weights([asked.group for asked in prompts.values()], label=label)
    return Column(values, np.ones(len(values), dtype=bool), weights)


def _separation(threshold: float, forget: Column, retain: Column) -> Separation:
    known = [column._replace(values=-column.values) for column in (retain, forget)]
    return Separation(
        refusal_rate=refusal_rate(forget.values, threshold, direction="higher", ideal=1.0),
        auroc=auc_estimate(forget, retain, name="energy.auroc").score("higher", ideal=1.0),
        fpr95=fpr95_estimate(*known, name="energy.fpr95").score("lower", ideal=0.0),
    )
