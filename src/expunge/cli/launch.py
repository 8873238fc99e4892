"""`--num_processes N`: the same command in N processes of this machine, watched until all have ended."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Annotated, NamedTuple

import typer

from expunge.errors import UsageError
from expunge.runs.rank import LAUNCHER, PEER_LOST, launched, world

NumProcesses = Annotated[
    int, typer.Option("--num-processes", min=1, help="Processes on this machine; on GPUs, one for each.")
]

PATIENCE = 10.0
"""Seconds the others have to notice that a process is gone, before they are ended."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def several(context: typer.Context, count: int) -> None:
    """Carry the command out in `count` processes and exit as they did; return where this is one of them, or alone.

    Args:
        context: of the command; its root holds the arguments as given.
        count: how many.

    Raises:
        UsageError: another launcher has already started another number of processes.
        typer.Exit: the command has been carried out.
    """
    if launched():
        if count not in (1, world()):
            raise UsageError(
                f"--num_processes {count}, but a launcher has started {world()} processes",
                hint="leave --num_processes out under torchrun and accelerate launch",
            )
        return
    if count > 1:
        raise typer.Exit(launch(context.find_root().obj, count))


class _Ended(NamedTuple):
    rank: int
    code: int


def launch(arguments: Sequence[str], count: int) -> int:
    """Start `count` processes of `expunge <arguments>` and wait for them; process 0 prints, the others are silent.

    When one fails, the others notice, or are ended, and one message is shown. Ctrl-C reaches all of them.

    Returns:
        Exit code of the process whose message that is, 128 + n where signal n ended it; 0 if none failed.
    """
    with tempfile.TemporaryDirectory() as folder, _relaying() as children:
        logs = [Path(folder) / f"{rank}" for rank in range(count)]
        port = _free_port()
        for rank, log in enumerate(logs):
            children.append(_start(arguments, _environment(rank, count, port), None if rank == 0 else log))
        ended = _until_all_ended(children)
        guilty = _guilty(ended)
        if guilty is None:
            return 0
        _report(guilty, logs)
        return guilty.code if guilty.code > 0 else 128 - guilty.code


def _start(arguments: Sequence[str], environment: Mapping[str, str], log: Path | None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "expunge.cli.main", *arguments]
    if log is None:
        return subprocess.Popen(command, env=environment)
    with log.open("wb") as errors:
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors)


def _environment(rank: int, count: int, port: int) -> dict[str, str]:
    """What torch.distributed and Accelerate read; cores are shared out unless the user has said how."""
    cores = max(1, (os.cpu_count() or 1) // count)
    return {
        "OMP_NUM_THREADS": str(cores),
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        LAUNCHER: "1",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _relaying() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Hand signals on to the children, which stop between two steps; whatever happens, none of them outlives us."""
    children: list[subprocess.Popen[bytes]] = []

    def relay(number: int, frame: FrameType | None) -> None:
        # A terminal sends Ctrl-C to the whole group, so the children have it already.
        if number != signal.SIGINT:
            for child in children:
                child.send_signal(number)

    before = {number: signal.signal(number, relay) for number in _SIGNALS}
    try:
        yield children
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
        for number, handler in before.items():
            signal.signal(number, handler)


def _until_all_ended(children: Sequence[subprocess.Popen[bytes]]) -> list[_Ended]:
    """Every child's end, in the order in which they ended."""
    news: queue.Queue[_Ended] = queue.Queue()
    for rank, child in enumerate(children):
        threading.Thread(target=lambda r=rank, c=child: news.put(_Ended(r, c.wait())), daemon=True).start()
    ended: list[_Ended] = []
    harsher = iter((signal.SIGTERM, signal.SIGKILL))
    while len(ended) < len(children):
        failed = any(each.code for each in ended)
        try:
            ended.append(news.get(timeout=PATIENCE if failed else None))
        except queue.Empty:
            number = next(harsher, signal.SIGKILL)
            for child in children:
                if child.poll() is None:
                    child.send_signal(number)
    return ended


def _guilty(ended: Sequence[_Ended]) -> _Ended | None:
    """The process that speaks for all: the first one, where it failed of its own accord, else the first to fail so."""
    failed = [each for each in ended if each.code not in (0, PEER_LOST)]
    spoken = [each for each in failed if each.rank == 0 and each.code > 0]
    return next(iter(spoken or failed or [each for each in ended if each.code]), None)


def _report(guilty: _Ended, logs: Sequence[Path]) -> None:
    """Show what a process had to say; process 0 has said it already."""
    if guilty.code < 0:
        name = signal.Signals(-guilty.code).name
        typer.echo(f"error: process {guilty.rank} of {len(logs)} was ended by {name}", err=True)
        typer.echo("hint: the same command resumes a run from its last checkpoint", err=True)
    elif guilty.rank != 0:
        _copy(logs[guilty.rank], sys.stderr)


def _copy(log: Path, to: IO[str]) -> None:
    to.write(log.read_text(encoding="utf-8", errors="replace"))
    to.flush()
