"""Small runs in one process or in several, which are forked from a server that has imported the heavy packages."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from small_world import build_engine, by_default, encoded
from torch.distributed.tensor import DTensor

from expunge.catalog import METHODS
from expunge.models.processes import join, processes
from expunge.testing.tiny import tiny_tokenizer
from expunge.train.checkpoint import Checkpoints
from expunge.train.sharding import whole


class Task(NamedTuple):
    """One run: a method with wrappers, for so many steps, kept in a folder where it goes on."""

    method: str
    wrappers: Sequence[Mapping[str, Any]] = ()
    divided: bool = False
    budget: int = 64
    """One row a micro-batch: of an epoch's last three rows one process has two, the other one and a zero-weight
    repeat."""
    settings: Mapping[str, Any] = {}
    keys: Mapping[str, Any] = {}
    """The method's own."""
    checkpoints: str = ""
    """Folder; nothing is saved unless said."""
    stop_after: int = 0
    """Steps of this call; all of them unless said."""


def carry_out(task: Task, folder: Path) -> dict[str, Any]:
    """What a run comes to, on every process alike."""
    tokenizer = tiny_tokenizer()
    method = by_default(task.method)
    if task.keys:
        method = METHODS.load(task.method)(**{**method.model_dump(exclude_unset=True), **task.keys})
    engine = build_engine(
        tokenizer,
        encoded(tokenizer),
        method,
        folder=folder,
        budget=task.budget,
        wrappers=task.wrappers,
        divided=task.divided,
        **{"steps": 4, **task.settings},
    )
    divided = any(isinstance(parameter, DTensor) for parameter in engine.model.parameters())
    checkpoints = Checkpoints(Path(task.checkpoints)) if task.checkpoints else None
    if checkpoints:
        checkpoints.load(engine)
    events: list[dict[str, Any]] = []
    if task.stop_after:
        engine.total_steps = task.stop_after
    engine.fit(emit=events.append, checkpoints=checkpoints)
    sums = {name: float(whole(p.detach()).double().abs().sum()) for name, p in engine.model.named_parameters()}
    terms = [{key: event[key] for key in event if isinstance(event[key], float)} for event in events]
    volatile = {"seconds", "tokens_per_s", "eta_s", "memory_mb", "lr"}
    return {
        "processes": processes().world,
        "divided": divided,
        "steps": [{k: v for k, v in step.items() if k not in volatile} for step in terms],
        "weights": sums,
    }


def in_processes(tasks: Sequence[Task], folder: Path, *, count: int = 2, cache: Path) -> list[dict[str, Any]]:
    """Carry tasks out one after the other in `count` processes; process 0's results."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["layouts", "expunge.train.runner"])
    out = folder / "out.json"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    environment["EXPUNGE_CACHE"] = str(cache)
    workers = [
        context.Process(target=_work, args=(list(tasks), folder, out, {**environment, "RANK": str(rank)}, sys.path))
        for rank in range(count)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
        worker.kill()
    assert [worker.exitcode for worker in workers] == [0] * count
    found: list[dict[str, Any]] = json.loads(out.read_text())
    return found


def _work(tasks: list[Task], folder: Path, out: Path, environment: dict[str, str], path: list[str]) -> None:
    os.environ.update(environment, LOCAL_RANK=environment["RANK"], ACCELERATE_USE_CPU="true")
    sys.path[:] = path
    torch.set_num_threads(1)
    join(torch.device("cpu"))
    found = [carry_out(task, folder) for task in tasks]
    if processes().main:
        out.write_text(json.dumps(found))
