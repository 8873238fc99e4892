"""How long a run takes: by a throughput that was measured, or by arithmetic over what the hardware could do."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from expunge.models.budget import Measured
from expunge.train.hardware import Hardware

UTILISATION = 0.4
"""Share of a device's matrix-product rate that a training step is assumed to reach."""
_ASKING = 1 / 3
"""Of a training step's arithmetic: a forward pass alone."""
_PROBE = 768


class Work(NamedTuple):
    """What is to be done, over all processes."""

    steps: int
    tokens_per_step: float
    """Real tokens, on average."""
    flops_per_step: float
    """Of matrix products and attention, forward and backward, padding included, on average."""
    asked_tokens: int
    """Tokens of the rows the starting model is asked about."""


class Time(NamedTuple):
    """How long it takes, without loading, compiling and saving."""

    seconds: float | None
    """Training and asking the starting model; None where nothing says how fast the device is."""
    tables: float | None
    """Of it, asking the starting model; nothing in a second run."""
    tokens_per_s: float | None
    """Over all processes."""
    source: str
    """Where the speed is from."""


def run_time(work: Work, where: Hardware, *, given: float | None, measured: Measured | None, recomputed: bool) -> Time:
    """The time of a run.

    Args:
        work: to be done.
        where: the hardware.
        given: tokens per second over all processes, if the caller knows.
        measured: by an earlier run of this model on this machine, on one process and without checkpointing.
        recomputed: gradient checkpointing forwards everything twice.
    """
    rate, source = _rate(work, where, given, measured, recomputed)
    if rate is None:
        return Time(None, None, None, source)
    asking = work.asked_tokens * _ASKING / rate
    return Time(work.steps * work.tokens_per_step / rate + asking, asking, rate, source)


def _rate(
    work: Work, where: Hardware, given: float | None, measured: Measured | None, recomputed: bool
) -> tuple[float | None, str]:
    if given is not None:
        return given, "as given"
    if measured is not None and measured.tokens_per_s and where.here:
        rate = measured.tokens_per_s * (0.75 if recomputed else 1.0)
        return rate * where.processes, "measured on this machine by an earlier run"
    peak, what = _peak(where)
    if peak is None:
        return None, what
    rate = UTILISATION * peak * where.processes * work.tokens_per_step / work.flops_per_step
    return rate, f"{work.flops_per_step:.2g} operations a step at {UTILISATION:.0%} of {what}"


def _peak(where: Hardware) -> tuple[float | None, str]:
    """Operations per second of one device."""
    if where.card is not None:
        return where.card.teraflops * 1e12, f"the {where.card.teraflops:g} TFLOP/s of {where.name}"
    if not where.here:
        return (
            None,
            f"unknown: {where.name} says nothing of speed; name the GPU (--device h100), or give --tokens-per-s",
        )
    rate = _matrix_products(torch.device(where.kind))
    return rate, f"the {rate / 1e12:.2g} TFLOP/s of matrix products just measured here"


def _matrix_products(device: torch.device) -> float:
    """Operations per second of a product of the size a layer has, best of a few, in some milliseconds."""
    kind = torch.float32 if device.type == "cpu" else torch.bfloat16
    a, b = (torch.ones(_PROBE, _PROBE, device=device, dtype=kind) for _ in range(2))
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        # Reading one number waits for the device.
        float((a @ b)[0, 0])
        best = min(best, time.perf_counter() - started)
    return 2.0 * _PROBE**3 / best
