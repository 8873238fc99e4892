"""A worker that trains nothing: values follow from the learning rate, and trial 1 kills its first worker."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.demo import worker
from expunge.runs.store import atomic_write_json
from expunge.sweep.claims import Claims
from expunge.sweep.plan import MEASURED, read_sweep
from expunge.sweep.study import take_turn, tell

FORGET, RETAIN = "forget.extraction_strength", "retain.extraction_strength"


def start(step: Mapping[str, Any], progress: worker.Say) -> dict[str, Any]:
    scores = {FORGET: {"value": 1.0, "direction": "lower"}, RETAIN: {"value": 1.0, "direction": "higher"}}
    atomic_write_json(Path(step["out"]) / MEASURED, {"metrics": scores, "skipped": {}})
    return {}


def trial(step: Mapping[str, Any], progress: worker.Say) -> dict[str, Any]:
    sweep = read_sweep(Path(step["out"]))
    turn = take_turn(sweep, Claims(sweep.root))
    if turn is None:
        return {}
    with turn.claim:
        progress({"event": "trial", "number": turn.number, "state": "running", "params": turn.params})
        path = sweep.path(turn.number)
        path.mkdir(exist_ok=True)
        if turn.number == 1 and not (path / "died").exists():
            (path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        # From 1e-4 to 1e-2: everything kept to everything forgotten.
        share = (math.log10(turn.params["train.learning_rate"]) + 4) / 2
        ended = {"state": "finished", "values": {FORGET: 1 - share, RETAIN: 1 - share**3}}
        tell(sweep, turn, ended, {FORGET: 1.0, RETAIN: 1.0})
        progress({"event": "trial", "number": turn.number, "seconds": 1.0, **ended})
    return {}


def _nothing() -> None:
    """Torch stays away."""


if __name__ == "__main__":
    worker._prepare = _nothing
    worker.main({"start": start, "trial": trial})
