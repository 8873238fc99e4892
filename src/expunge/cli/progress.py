"""Progress events shown on stderr: live bars in a terminal, one plain line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, NamedTuple

from expunge.cli.output import note, number, size
from expunge.runs.rank import rank

Event = dict[str, Any]
Show = Callable[[Event], None]

SECONDS_BETWEEN_LINES = 10.0
_NOT_A_LOSS = {"epoch", "lr", "grad_norm", "tokens_per_s", "eta_s", "memory_mb", "seconds"}


class Count(NamedTuple):
    """How far a phase is."""

    name: str
    done: int
    total: int


@contextmanager
def showing() -> Iterator[Show]:
    """The function to give to a long call as `progress`; what libraries print meanwhile goes to stderr as well."""
    with redirect_stdout(sys.stderr), _shown() as show:
        yield show


@contextmanager
def _shown() -> Iterator[Show]:
    if rank() != 0:
        yield lambda event: None
        return
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal or console.is_dumb_terminal:
        yield PlainProgress()
        return
    from expunge.cli.live import LiveProgress

    with LiveProgress(console) as live:
        yield live


class PlainProgress:
    """One line per phase at its start and end, and every ten seconds between.

    Args:
        write: prints a line.
        clock: seconds.
    """

    def __init__(self, write: Callable[[str], None] = note, clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self._printed: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        """Show an event; kinds without a text or a count are not shown."""
        if text := message(event):
            self._write(text)
            return
        count = counted(event)
        if count is None:
            return
        now = self._clock()
        # Several phases may be under way at once, each with lines of its own.
        last = self._printed.get(count.name)
        if last is not None and count.done != count.total and now - last < SECONDS_BETWEEN_LINES:
            return
        self._printed[count.name] = now
        parts = (f"{count.name} {count.done}/{count.total}", details(event), _eta(event))
        self._write("  ".join(part for part in parts if part))


def message(event: Event) -> str | None:
    """The line of a note, a warning or an evaluation; None for other events."""
    if event.get("event") == "warning":
        return f"warning: {event.get('text')}"
    if event.get("event") == "eval":
        return evaluation(event)
    return str(event.get("text")) if event.get("event") == "note" else None


def evaluation(event: Event) -> str:
    """`measured after step 40/50  forget.extraction_strength 0.1  best so far`."""
    metrics = event["metrics"]
    parts = [f"measured after step {event['step']}/{event['total']}"]
    parts += [f"{name} {number(metrics[name])}" for name in event.get("shown", ())]
    if event.get("best"):
        parts.append("best so far")
    if event.get("broken"):
        parts.append(f"not {', '.join(event['broken'])}")
    return "  ".join(parts)


def counted(event: Event) -> Count | None:
    """How far the phase of an event is; None for events that do not count."""
    if event.get("event") == "step":
        return Count("step", int(event["step"]), int(event["total"]))
    if event.get("event") == "phase" and "done" in event:
        return Count(str(event["name"]), int(event["done"]), int(event["total"]))
    return None


def details(event: Event) -> str:
    """Loss terms, speed, memory, learning rate and gradient norm of an event, as far as it has them."""
    parts = []
    if event.get("event") == "step":
        parts = [f"{k} {number(v)}" for k, v in event.items() if isinstance(v, float) and k not in _NOT_A_LOSS]
    if "tokens_per_s" in event:
        parts.append(f"{event['tokens_per_s']:.0f} tokens/s")
    if "memory_mb" in event:
        parts.append(size(event["memory_mb"] * 1e6))
    parts += [f"{key} {number(event[key])}" for key in ("lr", "grad_norm") if key in event]
    return "  ".join(parts)


def _eta(event: Event) -> str:
    if "eta_s" not in event:
        return ""
    minutes, seconds = divmod(int(event["eta_s"]), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d} left"
