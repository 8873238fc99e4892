"""A guard that refuses above a threshold: how the threshold is calibrated, and how often the guard then refuses.

Pure arrays. The threshold is a conformal quantile: of new prompts like the calibration prompts, at most the chosen
share is refused, whatever the distribution of the scores.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from scipy.special import betaincinv

from expunge.errors import MetricError, UsageError
from expunge.metrics.bootstrap import LEVEL, Interval
from expunge.metrics.ragged import Array
from expunge.metrics.score import Direction, Score

REFUSALS_EXPECTED = 10
"""Calibration prompts that the asked rate should refuse, so that the rate is more than the accident of a few."""


OTHER_WORDING = "retain_paraphrased"
"""Retain prompts a guard is never calibrated on: what it does to words it has not seen is measured there."""


class Halves(NamedTuple):
    """Distinct prompts, split in two."""

    calibration: tuple[str, ...]
    test: tuple[str, ...]


def needed_prompts(rate: float) -> int:
    """Calibration prompts that a false-refusal rate asks for: `ceil(10 / rate)`, 500 for 2 %.

    Raises:
        UsageError: the rate is not inside (0, 1).
    """
    return math.ceil(REFUSALS_EXPECTED / _exact(rate))


def conformal_rank(n: int, rate: float) -> int:
    """`ceil((n + 1)(1 - rate))`, in exact decimal arithmetic: 0.02 of 99 prompts is rank 98, not 99 by rounding.

    Raises:
        UsageError: the rate is not inside (0, 1).
    """
    return math.ceil((n + 1) * (1 - _exact(rate)))


def conformal_threshold(
    energies: Array,  # (n,)
    *,
    rate: float,
) -> float:
    """The energy at the conformal rank; a guard refuses what lies above it.

    A new prompt that is exchangeable with the calibration prompts exceeds it with probability at most `rate`.

    Args:
        energies: one score per distinct calibration prompt, higher = unknown; their order does not matter.
        rate: false-refusal rate in (0, 1).

    Returns:
        One of `energies`.

    Raises:
        UsageError: the rate is not inside (0, 1).
        MetricError: there are fewer than `needed_prompts(rate)` energies, or one is not a finite number.

    Source:
        Vovk et al., "Algorithmic Learning in a Random World" (2005), inductive conformal prediction.
    """
    needed = needed_prompts(rate)
    if len(energies) < needed:
        raise MetricError(
            f"a false-refusal rate of {percent(rate)} needs {needed} calibration prompts, there are {len(energies)}",
            hint=f"give more retain prompts, or ask for a rate of {percent(_coarser(len(energies)))} or more",
        )
    _check_finite(energies)
    # The needed number keeps the rank within the calibration set: (n + 1)(1 - rate) <= n from n = 1 / rate - 1 on.
    return float(np.sort(energies)[conformal_rank(len(energies), rate) - 1])


def calibration_split(prompts: Sequence[str], *, seed: int) -> Halves:
    """Halve the distinct prompts by the order of SHA-256 of (seed, prompt); an odd one out goes to the test half.

    Which half a prompt comes to depends on the set of prompts alone, not on their order or on repetitions.

    Args:
        prompts: in any order, repeated or not.
        seed: of the order.
    """
    ordered = sorted(set(prompts), key=lambda prompt: prompt_key(prompt, seed=seed))
    half = len(ordered) // 2
    return Halves(tuple(ordered[:half]), tuple(ordered[half:]))


def prompt_key(prompt: str, *, seed: int) -> bytes:
    """What prompts are halved in the order of: SHA-256 of (seed, prompt)."""
    return hashlib.sha256(f"{seed}\n{prompt}".encode()).digest()


def calibrates(split: str) -> bool:
    """Whether the prompts of a suite's split calibrate its guard: `retain` and its other forms, but no paraphrases."""
    return (split == "retain" or split.startswith("retain_")) and split != OTHER_WORDING


def refusal_rate(
    energies: Array,  # (n,)
    threshold: float,
    *,
    direction: Direction,
    ideal: float | None = None,
    n_total: int | None = None,
) -> Score:
    """Share of prompts whose energy is above the threshold, with its exact binomial interval.

    Args:
        energies: one per distinct prompt.
        threshold: energies above it are refused; one equal to it is answered.
        direction: `higher` for prompts that should be refused, `lower` for the others.
        ideal: what a perfect guard scores.
        n_total: prompts there were before some were left out; all of them unless said.

    Raises:
        MetricError: there is no prompt, or an energy is not a finite number.
    """
    _check_finite(energies)
    if len(energies) == 0:
        raise MetricError("a refusal rate needs at least one prompt, there is none", hint="give prompts to ask")
    refused = int((energies > threshold).sum())
    low, high = binomial_interval(refused, len(energies))
    n = len(energies)
    return Score(refused / n, low, high, n, n if n_total is None else n_total, ideal, direction)


def binomial_interval(count: int, n: int, *, level: float = LEVEL) -> Interval:
    """Exact interval of a share: the probabilities under which `count` of `n` is not surprising on either side.

    Prompts count as independent. Those of one person are not quite, so it is a little narrow for them.

    Args:
        count: in [0, n].
        n: at least 1.
        level: coverage, at least reached.

    Source:
        Clopper and Pearson (1934).
    """
    tail = (1 - level) / 2
    low = 0.0 if count == 0 else float(betaincinv(count, n - count + 1, tail))
    high = 1.0 if count == n else float(betaincinv(count + 1, n - count, 1 - tail))
    return Interval(low, high)


def percent(rate: float) -> str:
    """`2 %`."""
    return f"{100 * rate:.4g} %"


def _exact(rate: float) -> Fraction:
    if not 0 < rate < 1:
        raise UsageError(f"the false-refusal rate is {rate}", hint="give a share inside (0, 1), such as 0.02 for 2 %")
    return Fraction(repr(float(rate)))


def _coarser(n: int) -> float:
    """The smallest rate that `n` prompts allow, rounded up to a tenth of a percent and kept below 1."""
    return min(math.ceil(1000 * REFUSALS_EXPECTED / max(n, 1)) / 1000, 0.999)


def _check_finite(energies: Array) -> None:
    if bad := int((~np.isfinite(energies)).sum()):
        raise MetricError(
            f"{bad} of {len(energies)} energies are not a finite number",
            hint="the model gives NaN or infinite logits there; check its weights and dtype",
        )
