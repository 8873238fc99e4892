"""The worker program of a bench: the demo's steps, and whole cells.

`python -m expunge.bench.worker` is started by `demo.workers`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from expunge.bench.memory import PeakMemory
from expunge.bench.plan import CELL
from expunge.demo.worker import STEPS, Say, main
from expunge.runs.store import atomic_write_json

CACHE = "EXPUNGE_CACHE"
_READS = (("model", "model_name_or_path"), ("data", "forget"), ("data", "retain"))


def cell(step: Mapping[str, Any], progress: Say) -> dict[str, Any]:
    """Unlearn and measure from nothing, and write down what it took; a cell that was begun is begun again.

    Seconds and memory are those of unlearning: loading, preparing, tables of the starting model, training and saving.
    """
    import torch

    from expunge import api
    from expunge.models.load import pick_device

    path = Path(step["path"])
    (path / CELL).unlink(missing_ok=True)
    device = pick_device(None)
    if device.type == "cpu":
        torch.set_num_threads(1)
    _warm(*(step["recipe"][section][key] for section, key in _READS))
    memory = PeakMemory(device)
    began = time.perf_counter()
    with _own_cache():
        run = api.unlearn(step["recipe"], overwrite=True, progress=progress)
    seconds, peak = time.perf_counter() - began, memory.mb()
    shutil.rmtree(path / "checkpoints", ignore_errors=True)
    done = api.evaluate(path, reference=step["retrained"], start=step["start"], overwrite=True, progress=progress)
    found = {
        "key": step["key"],
        "steps": run.steps,
        "seconds": round(seconds, 2),
        "peak_memory_mb": round(peak, 1),
        "device": str(device),
        "metrics": {name: score.to_json() for name, score in done.scores.items()},
        "skipped": dict(done.skipped),
    }
    atomic_write_json(path / CELL, found)
    return {}


@cache
def _warm(model: str, forget: str, retain: str) -> None:
    """One step of anything, thrown away: libraries that load late are nobody's memory and nobody's seconds."""
    from expunge import api

    with tempfile.TemporaryDirectory(prefix="expunge-bench-") as folder:
        recipe = {
            "kind": "unlearn",
            "model": {"model_name_or_path": model},
            "data": {"forget": forget, "retain": retain},
            "method": {"name": "grad_diff"},
            "train": {"max_steps": 1, "global_batch_size": 4, "token_budget": 1024},
            "output_dir": folder,
        }
        api.unlearn(recipe)


@contextmanager
def _own_cache() -> Iterator[None]:
    """No cell finds a table that another one built: each pays for its own."""
    before = os.environ.get(CACHE)
    with tempfile.TemporaryDirectory(prefix="expunge-bench-") as folder:
        os.environ[CACHE] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[CACHE]
            else:
                os.environ[CACHE] = before


if __name__ == "__main__":
    main({**STEPS, "cell": cell})
