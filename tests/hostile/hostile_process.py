"""Command lines in processes of their own that can be starved, interrupted and killed.

They are forked from a server that has imported the heavy packages once, so that a process costs a tenth of a second.
"""

from __future__ import annotations

import importlib
import itertools
import multiprocessing
import os
import resource
import signal
import sys
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, NamedTuple

_PRELOAD = ["hostile_process", "expunge.cli.main", "expunge.api", "expunge.train.runner", "expunge.evals.run"]


class Fault(NamedTuple):
    """What befalls a process."""

    file_size: int | None = None
    """Bytes a file may grow to: a write beyond it fails, as on a full disk."""
    at: str = ""
    """Dotted name of a function that is about to be called ..."""
    call: int = 1
    """... for this time ..."""
    signal: int = signal.SIGKILL
    """... when the process gets this signal."""


NONE = Fault()


class Ended(NamedTuple):
    """A process that has ended."""

    code: int
    """Exit code; minus the signal that killed it."""
    out: str
    err: str


class Processes:
    """Runs command lines in a folder, each to its end."""

    def __init__(self, server: ForkServerContext, folder: Path) -> None:
        self.server, self.folder, self.count = server, folder, 0

    def __call__(self, *argv: str | Path, fault: Fault = NONE) -> Ended:
        """Run one; one that does not end within a minute is killed."""
        self.count += 1
        log = self.folder / f"process-{self.count}"
        arguments = ([str(arg) for arg in argv], str(self.folder), str(log), fault)
        process = self.server.Process(target=_main, args=arguments, daemon=True)
        process.start()
        process.join(60)
        if process.exitcode is None:
            process.kill()
            process.join()
        assert process.exitcode is not None
        out, err = (log.with_suffix(f".{name}").read_text(encoding="utf-8") for name in ("out", "err"))
        return Ended(process.exitcode, out, err)


def start_server() -> ForkServerContext:
    """The server; it starts with the first process and ends with this one."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(_PRELOAD)
    return server


def _main(argv: list[str], folder: str, log: str, fault: Fault) -> None:
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(folder)
    os.environ["EXPUNGE_CACHE"] = f"{folder}/cache"
    # Where the tests run as a background job it is ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import torch

    torch.set_num_threads(1)
    if fault.file_size is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.file_size, fault.file_size))
    if fault.at:
        _strike(fault)
    from expunge.cli.main import main

    code = main(argv)
    sys.stderr.flush()
    os._exit(code)


def _strike(fault: Fault) -> None:
    """Put the signal before the n-th call of the function."""
    path, _, name = fault.at.rpartition(".")
    try:
        place = importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, inner = path.rpartition(".")
        place = getattr(importlib.import_module(module), inner)
    function, calls = getattr(place, name), itertools.count(1)

    def struck(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == fault.call:
            os.kill(os.getpid(), fault.signal)
        return function(*args, **kwargs)

    setattr(place, name, struck)
