"""A process that carries jobs out one after another: JSON lines in, JSON lines out.

`python -m expunge.demo.worker` is started by `demo.workers`; a job is a list of steps, each a call of `expunge.api`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from expunge.errors import ExpungeError

Say = Callable[[dict[str, Any]], None]
Steps = Mapping[str, Callable[[Mapping[str, Any], Say], dict[str, Any]]]

SECONDS_BETWEEN_EVENTS = 0.25
"""Progress is for people: more often than this nobody can read it."""
SECONDS_BETWEEN_LOOKS = 0.5
"""How soon a worker notices that nobody waits for it."""


def main(steps: Steps | None = None) -> None:
    """Serve jobs until stdin ends.

    Args:
        steps: what the jobs may be made of; the demo's unless given.
    """
    # Its parent passes Ctrl-C on; a background job's children would ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # What a library prints must not be taken for an answer.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message, default=str) + "\n")
        answers.flush()

    threading.Thread(target=_end_without, args=(os.getppid(),), daemon=True).start()
    try:
        _prepare()
        for line in sys.stdin:
            serve(json.loads(line), say, STEPS if steps is None else steps)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Nobody is listening any more.
        os._exit(1)


def _end_without(parent: int) -> None:
    """Interrupt this process when the one that started it was killed: the next demo needs its run directories."""
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os.kill(os.getpid(), signal.SIGINT)


def _prepare() -> None:
    import torch

    torch.set_num_threads(1)


def serve(job: Mapping[str, Any], say: Say, steps: Steps) -> None:
    """Carry out the steps of one job; the first error ends it."""
    results = []
    for number, step in enumerate(job["steps"]):
        started = time.perf_counter()
        try:
            result = steps[step["do"]](step, _events(say, number))
        except ExpungeError as error:
            say({"error": error.message, "hint": error.hint, "exit_code": error.exit_code})
            return
        except Exception:
            say({"error": traceback.format_exc(), "hint": None, "exit_code": 1})
            return
        seconds = round(time.perf_counter() - started, 2)
        results.append({"seconds": seconds, **result})
        say({"finished": number, "seconds": seconds, "continued": bool(result.get("continued"))})
    say({"results": results})


def _events(say: Say, number: int) -> Say:
    last = 0.0

    def pass_on(event: dict[str, Any]) -> None:
        nonlocal last
        kind = event.get("event")
        now = time.monotonic()
        if kind in ("warning", "trial"):
            say({"step": number, "event": event})
        elif kind in ("step", "phase") and now - last >= SECONDS_BETWEEN_EVENTS:
            last = now
            say({"step": number, "event": event})

    return pass_on


def _carry_out(step: Mapping[str, Any], progress: Say) -> dict[str, Any]:
    """Train or unlearn; a run that lies there finished is left as it is."""
    from expunge import api
    from expunge.runs.run import Run

    path = Path(step["path"])
    if (path / "manifest.json").exists() and Run.open(path).manifest.status == "finished":
        return {"continued": True}
    call = api.train if step["do"] == "train" else api.unlearn
    call(step["recipe"], *step["overrides"], progress=progress)
    return {}


def _evaluate(step: Mapping[str, Any], progress: Say) -> dict[str, Any]:
    from expunge import api

    api.evaluate(step["path"], progress=progress)
    return {}


def _guard(step: Mapping[str, Any], progress: Say) -> dict[str, Any]:
    from expunge import api

    made = api.calibrate_guard(step["path"], rate=step["rate"], progress=progress)
    assert made.forget is not None, "an unlearned run has forget rows"
    scores = {"guard.refusal_rate": made.forget.refusal_rate, "guard.over_refusal_rate": made.over_refusal}
    return {
        "rate": made.rate,
        "statistic": made.statistic,
        "threshold": made.threshold,
        "calibration_prompts": made.num_calibration,
        "metrics": {name: score.to_json() for name, score in scores.items()},
    }


def _ask(step: Mapping[str, Any], progress: Say) -> dict[str, Any]:
    from expunge import api
    from expunge.demo.story import questions

    asked = questions(Path(step["start"])).values()
    return {"answers": [api.ask(step["path"], question, guard=True)._asdict() for question in asked]}


STEPS: Steps = {
    "train": _carry_out,
    "unlearn": _carry_out,
    "eval": _evaluate,
    "guard": _guard,
    "ask": _ask,
}

if __name__ == "__main__":
    main()
