"""How long a run takes: by its operations, timed here, or by arithmetic over what the hardware could do."""

from __future__ import annotations

from typing import NamedTuple

from expunge.train.planning.hardware import Hardware
from expunge.train.planning.shadow import OPTIMIZER
from expunge.train.planning.stopwatch import Operations, Stopwatch

UTILISATION = 0.4
"""Share of a device's matrix-product rate that a training step is assumed to reach."""
_ASKING = 1 / 3
"""Of a training step's arithmetic: a forward pass alone."""
_SAY_MORE = "name the GPU (--device h100), or give --tokens-per-s"


class Work(NamedTuple):
    """What is to be done, over all processes."""

    steps: int
    tokens_per_step: float
    """Real tokens, on average."""
    flops_per_step: float
    """Of matrix products and attention, forward and backward, padding included, on average."""
    operations: Operations
    """Of a rehearsed step on one process."""
    share: float
    """Arithmetic of an average step on one process, in multiples of the rehearsed one's."""
    asking: tuple[tuple[Operations, float], ...]
    """Of asking the starting model about one pack of rows of each dataset; in how many such packs all of them are."""
    asked_tokens: int
    """Tokens of the rows the starting model is asked about."""


class Time(NamedTuple):
    """How long it takes, without loading, evaluating and saving."""

    seconds: float | None
    """Training and asking the starting model; None where nothing says how fast the device is."""
    tables: float | None
    """Of it, asking the starting model; nothing in a second run."""
    tokens_per_s: float | None
    """Over all processes, while training."""
    source: str
    """Where the speed is from."""


def run_time(work: Work, where: Hardware, stopwatch: Stopwatch, *, given: float | None) -> Time:
    """The time of a run.

    Args:
        work: to be done.
        where: the hardware.
        stopwatch: of the device, if it is here: every operation of a step is timed on it, which takes some seconds.
        given: tokens per second over all processes, if the caller knows.
    """
    if given is not None:
        return _at_rate(work, given, "as given")
    if where.here:
        return _timed(work, where, stopwatch)
    if where.card is None:
        return Time(None, None, None, f"unknown: {where.name} says nothing of speed; {_SAY_MORE}")
    rate = UTILISATION * where.card.teraflops * 1e12 * where.processes * work.tokens_per_step / work.flops_per_step
    of_what = f"{UTILISATION:.0%} of the {where.card.teraflops:g} TFLOP/s of {where.name}"
    return _at_rate(work, rate, f"{work.flops_per_step:.2g} operations a step at {of_what}")


def _at_rate(work: Work, rate: float, source: str) -> Time:
    asking = work.asked_tokens * _ASKING / rate
    return Time(work.steps * work.tokens_per_step / rate + asking, asking, rate, source)


def _timed(work: Work, where: Hardware, stopwatch: Stopwatch) -> Time:
    parts = stopwatch.seconds(work.operations)
    update = parts.pop(OPTIMIZER, 0.0)
    step = sum(parts.values()) * work.share + update
    asking = sum(share * sum(stopwatch.seconds(found).values()) for found, share in work.asking)
    if where.kind == "cpu":
        # Processes share the cores, and each does its own part of the work.
        step *= where.processes
    else:
        asking /= where.processes
    return Time(work.steps * step + asking, asking, work.tokens_per_step / step, "each operation of a step timed here")
