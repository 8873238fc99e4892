"""What a sweep is at, from the messages of its workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from expunge.demo.workers import Job, error_of
from expunge.sweep.plan import Sweep
from expunge.sweep.summary import Summary

_WORDS = {"step": "unlearning", "trace": "measuring", "generate": "measuring"}
"""Phase of a run -> what its trial is at."""


class Watch:
    """Turns messages of workers into progress events: a phase per trial under way, and one for the whole.

    Args:
        sweep: whose trials.
        show: receives the events.
        clock: seconds.
    """

    def __init__(
        self, sweep: Sweep, show: Callable[[dict[str, Any]], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._sweep, self._show, self._clock = sweep, show, clock
        self._began, self._ended, self._here = clock(), 0, 0

    def stands(self, summary: Summary) -> None:
        """Take over what has ended so far, here or elsewhere."""
        ended = sum(trial.state not in ("running", "waiting") for trial in summary.trials)
        if ended != self._ended or not ended:
            self._ended = ended
            self._whole()

    def __call__(self, job: Job, message: Mapping[str, Any]) -> None:
        """Take one message.

        Raises:
            ExpungeError: a worker cannot go on, as on a full disk.
        """
        if "error" in message:
            if not message.get("died"):
                raise error_of(message)
            text = "a worker process ended, most often killed for memory; its trial is taken up again"
            self._show({"event": "warning", "text": text})
        elif "event" in message:
            self._event(message["event"])

    def _event(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "trial":
            self._trial(event)
            return
        label = f"trial {event['trial']}" if "trial" in event else "start"
        if kind == "warning":
            self._show({"event": "warning", "text": f"{label}: {event.get('text')}"})
        elif "total" in event and ("done" in event or "step" in event):
            name = "step" if kind == "step" else str(event["name"])
            self._show(
                {
                    "event": "phase",
                    "name": f"{label}: {_WORDS.get(name, name)}",
                    "done": event["step" if kind == "step" else "done"],
                    "total": event["total"],
                    **({"eta_s": event["eta_s"]} if "eta_s" in event else {}),
                }
            )

    def _trial(self, event: Mapping[str, Any]) -> None:
        name, state = f"trial {event['number']}", event["state"]
        if state == "running":
            told = ", ".join(f"{key.rpartition('.')[2]} {plain(value)}" for key, value in event["params"].items())
            self._show({"event": "note", "text": f"{name}: {told}"})
            return
        self._ended, self._here = self._ended + 1, self._here + 1
        if state == "finished":
            values = event["values"]
            told = ", ".join(f"{metric} {values[metric]:.4g}" for metric in self._sweep.goal.metrics)
            self._show({"event": "note", "text": f"{name}: {told} ({event['seconds']:.0f} s)"})
        else:
            kind = "warning" if state == "failed" else "note"
            self._show({"event": kind, "text": f"{name}: {state}: {event['reason']}"})
        self._whole()

    def _whole(self) -> None:
        event = {"event": "phase", "name": "sweep", "done": self._ended, "total": self._sweep.trials}
        if self._here:
            left = self._sweep.trials - self._ended
            event["eta_s"] = round((self._clock() - self._began) * left / self._here)
        self._show(event)


def plain(value: Any) -> str:
    """A parameter as people read it: four significant digits of a number that is not whole."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
