"""One command line in several processes that carry it out together, each in its own folder and with its own fault."""

from __future__ import annotations

import importlib
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, NamedTuple

from hostile_process import NONE, Ended, Fault, _main


class Member(NamedTuple):
    """One of the processes."""

    folder: Path
    """Its current directory."""
    fault: Fault = NONE
    before: Sequence[str] = ()
    """Dotted names of functions that are called before the command line, in this process only."""


def team(
    server: ForkServerContext,
    members: Sequence[Member],
    *argv: str | Path,
    environment: Mapping[str, str] | None = None,
    seconds: float = 120,
) -> list[Ended]:
    """Run a command line in as many processes as there are members, each to its end.

    Processes that do not end in time are killed: what waits for ever fails its test.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(len(members)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    logs = [member.folder / f"member-{port}-{rank}" for rank, member in enumerate(members)]
    started = []
    for rank, (member, log) in enumerate(zip(members, logs, strict=True)):
        own = {**shared, **(environment or {}), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        started.append(
            server.Process(target=_member, args=(own, [str(arg) for arg in argv], member, str(log)), daemon=True)
        )
        started[-1].start()
    until = time.monotonic() + seconds
    for process in started:
        process.join(max(0.0, until - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join()
    texts = [[log.with_suffix(f".{name}").read_text(encoding="utf-8") for name in ("out", "err")] for log in logs]
    return [Ended(int(process.exitcode or 0), *text) for process, text in zip(started, texts, strict=True)]


def _member(environment: Mapping[str, str], argv: list[str], member: Member, log: str) -> None:
    os.environ.update(environment)
    for path in member.before:
        module, _, name = path.rpartition(".")
        getattr(importlib.import_module(module), name)()
    _main(argv, str(member.folder), log, member.fault)


def spoil_a_loss() -> None:
    """From the third step on, the loss of this process's first forget row is not a number."""
    from expunge.train.step import StepRun

    sound = StepRun._losses

    def losses(self: StepRun, micro_batch: Any) -> Any:
        loss, parts = sound(self, micro_batch)
        first = next(each for each in self.plan.micro_batches if each.role == "forget")
        if self.engine.step >= 2 and micro_batch is first:
            Path("spoiled").write_text(", ".join(self.engine._rows([micro_batch])))
            loss = loss * float("nan")
        return loss, parts

    StepRun._losses = losses  # type: ignore[method-assign]


def without_compiling() -> None:
    """DeepSpeed on a CPU sends through gloo instead of shared memory, which it would first compile code for."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    with redirect_stdout(sys.stderr):
        import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
