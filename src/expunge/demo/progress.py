"""What the demo is at and how long it will still take, from the messages of several workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from expunge.demo.workers import Job

COST = {"train": 50.0, "unlearn": 14.0, "eval": 8.0, "guard": 3.0, "ask": 1.0, "cell": 16.0}
"""Seconds of each kind of step on the machine they were measured on; only their ratios matter."""
_REUSED = 0.05
"""Share of a step's cost that is left when its result is there."""
_WORDS = {
    "train": ("training", "trained"),
    "unlearn": ("unlearning", "unlearned"),
    "eval": ("measuring", "measured"),
    "guard": ("calibrating the guard", "guard calibrated"),
    "ask": ("asking", "asked"),
    "cell": ("unlearning and measuring", "unlearned and measured"),
}
"""Step -> what is being done, what was done."""

Progress = Callable[[dict[str, Any]], None]


class Watch:
    """Turns messages of workers into progress events: one phase per step under way and one for the whole.

    Args:
        show: receives the events.
        jobs: every job, and whether its first step's result is there already.
        clock: seconds.
        name: of the whole.
    """

    def __init__(
        self,
        show: Progress,
        jobs: Sequence[tuple[Job, bool]],
        clock: Callable[[], float] = time.monotonic,
        *,
        name: str = "demo",
    ) -> None:
        self._show, self._clock, self._began, self._name = show, clock, clock(), name
        self._costs = {
            (job.name, number): COST[step["do"]] * (_REUSED if reused and number < 2 else 1)
            for job, reused in jobs
            for number, step in enumerate(job.steps)
        }
        self._reused = {job.name for job, reused in jobs if reused}
        self._several = len({job.name.partition("/")[0] for job, _ in jobs}) > 1
        self._share = dict.fromkeys(self._costs, 0.0)

    def __call__(self, job: Job, message: Mapping[str, Any]) -> None:
        """Take one message of the worker that carries out `job`."""
        if "error" in message:
            self._share |= {key: 1.0 for key in self._share if key[0] == job.name}
            text = f"{run_label(job.name, several=self._several)}: failed: {last_line(message['error'])}"
            self._show({"event": "warning", "text": text})
        elif "finished" in message:
            number = message["finished"]
            self._share[job.name, number] = 1.0
            if not (job.name in self._reused and number == 0):
                done = _WORDS[job.steps[number]["do"]][1]
                when = "before it was interrupted" if message.get("continued") else f"in {message['seconds']:.0f} s"
                self._show({"event": "note", "text": f"{run_label(job.name, several=self._several)}: {done} {when}"})
        else:
            self._step(job, message["step"], message["event"])
        self._whole()

    def _step(self, job: Job, number: int, event: Mapping[str, Any]) -> None:
        if event["event"] == "warning":
            self._show(
                {"event": "warning", "text": f"{run_label(job.name, several=self._several)}: {event.get('text')}"}
            )
            return
        done, total = event["step" if event["event"] == "step" else "done"], event["total"]
        if not total:
            return
        doing = _WORDS[job.steps[number]["do"]][0]
        if event["event"] == "step":
            self._share[job.name, number] = max(self._share[job.name, number], done / total)
        seconds = {"eta_s": event["eta_s"]} if "eta_s" in event else {}
        self._show(
            {
                "event": "phase",
                "name": f"{run_label(job.name, several=self._several)}: {doing}",
                "done": done,
                "total": total,
                **seconds,
            }
        )

    def _whole(self) -> None:
        """The whole as one phase in percent; what is left is guessed from what the done part took."""
        total = sum(self._costs.values())
        done = sum(self._costs[key] * share for key, share in self._share.items())
        event = {"event": "phase", "name": self._name, "done": int(100 * done / total), "total": 100}
        elapsed = self._clock() - self._began
        if done > 0.02 * total:
            event["eta_s"] = round(elapsed * (total - done) / done)
        self._show(event)


def run_label(name: str, *, several: bool) -> str:
    """What people read for a job `<seed>/<run>`: the run, and its seed where there are several."""
    seed, _, run = name.partition("/")
    return f"{run} (seed {seed})" if several else run


def last_line(error: str) -> str:
    """What a traceback ends with; an error of one line itself."""
    return error.strip().rpartition("\n")[2]
