"""Several worker processes that share a list of jobs, each with one thread.

On a CPU two processes of one thread train two small models faster than one process of two threads trains them one after
the other. Processes, not `multiprocessing`: a caller's script needs no main guard, and Ctrl-C is ours to pass on.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from expunge.errors import ExpungeError, StoppedError

SECONDS_TO_STOP = 30.0
"""How long a worker may take to write its checkpoint after Ctrl-C."""


class Job(NamedTuple):
    """Steps that one worker carries out in order."""

    name: str
    steps: tuple[Mapping[str, Any], ...]
    """`{"do": "train" | "unlearn" | "eval" | "guard", ...}`, see `demo.worker`."""
    after: tuple[str, ...] = ()
    """Jobs that must have ended."""
    may_fail: bool = False
    """Whether its error is its only result, `{"error", "hint", "exit_code"}` (and `died` where its worker ended), and
    the others go on."""


Listen = Callable[[Job, Mapping[str, Any]], None]
"""Called with a job and each message of its worker: `{"step", "event"}`, `{"finished", "seconds"}` or an error."""
WORKER = "expunge.demo.worker"


def processors() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def carry_out(
    jobs: Sequence[Job], listen: Listen, *, count: int, worker: str = WORKER
) -> dict[str, list[dict[str, Any]]]:
    """Carry out every job, those that wait for nothing first.

    Args:
        jobs: in the order in which they are taken up; `after` names jobs of the same list.
        listen: receives every message of the workers.
        count: most workers at once.
        worker: module of the worker program, which knows the steps.

    Returns:
        Job -> one result per step.

    Raises:
        ExpungeError: what a step of a job that may not fail refused; the other workers stop between two steps of
            training.
        StoppedError: the worker of such a job died (most often: killed for memory).
        KeyboardInterrupt: Ctrl-C; what the workers had trained lies in their checkpoints.
    """
    messages: queue.Queue[tuple[_Worker, str | None]] = queue.Queue()
    workers: list[_Worker] = []
    waiting, results = list(jobs), dict[str, list[dict[str, Any]]]()
    try:
        while len(results) < len(jobs):
            for job in [job for job in waiting if results.keys() >= set(job.after)]:
                idle = next((one for one in workers if one.job is None), None)
                if idle is None and len(workers) < count:
                    # Only now: starting one costs seconds.
                    workers.append(idle := _Worker(messages, worker))
                if idle is not None:
                    waiting.remove(job)
                    idle.take(job)
            speaker, line = messages.get()
            at = speaker.job
            if line is None:
                workers.remove(speaker)
                if at is None or not at.may_fail:
                    raise _died(speaker)
                message = {**_failure(_died(speaker)), "died": True}
            else:
                message = json.loads(line)
            assert at is not None
            if "error" in message and not at.may_fail:
                raise error_of(message)
            if "error" in message or "results" in message:
                results[at.name] = message.get("results", [message])
                speaker.job = None
            if "results" not in message:
                listen(at, message)
    finally:
        for one in workers:
            one.ask_to_stop()
        for one in workers:
            one.stop()
    return results


class _Worker:
    """One process and the job it is at."""

    def __init__(self, messages: queue.Queue[tuple[_Worker, str | None]], program: str) -> None:
        self.job: Job | None = None
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONUTF8": "1"}
        # A session of its own: Ctrl-C reaches this process only, which passes it on once.
        self.process = subprocess.Popen(
            [sys.executable, "-m", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=environment,
            start_new_session=True,
        )
        threading.Thread(target=self._read, args=(messages,), daemon=True).start()

    def take(self, job: Job) -> None:
        self.job = job
        assert self.process.stdin is not None
        # A process that is gone is noticed where its answers end.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"steps": [dict(step) for step in job.steps]}) + "\n")
            self.process.stdin.flush()

    def ask_to_stop(self) -> None:
        if self.process.poll() is None and self.job is not None:
            self.process.send_signal(signal.SIGINT)
        elif self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()

    def stop(self) -> None:
        try:
            self.process.wait(SECONDS_TO_STOP if self.job is not None else 2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _read(self, messages: queue.Queue[tuple[_Worker, str | None]]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            messages.put((self, line))
        messages.put((self, None))


def error_of(message: Mapping[str, Any]) -> Exception:
    """The error of a worker as if it had happened here; a bug keeps its traceback as text."""
    if message["exit_code"] == 1:
        return RuntimeError(message["error"])
    error = ExpungeError(message["error"], hint=message["hint"])
    error.exit_code = message["exit_code"]
    return error


def _failure(error: ExpungeError) -> dict[str, Any]:
    return {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}


def _died(worker: _Worker) -> ExpungeError:
    at = f" while at {worker.job.name}" if worker.job else ""
    return StoppedError(
        f"a worker process ended{at} (exit code {worker.process.wait()})",
        hint="most often it was killed for memory; the same command continues",
    )
