"""Several processes that carry out one run: who they are, and the few things they say to each other."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from expunge.errors import DataError, ExpungeError
from expunge.runs.rank import launched

T = TypeVar("T")

PATIENCE = timedelta(hours=4)
"""How long a process waits for the others: one may be writing a large model. A dead one ends the rest at once."""


@dataclass(frozen=True)
class Processes:
    """This process among those of a run; everything but `share` must be called by all of them, in the same order."""

    rank: int = 0
    """0-based, over every machine."""
    world: int = 1
    """How many there are."""

    @property
    def main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of `items`: every `world`-th of them."""
        return list(items[self.rank :: self.world])

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.world > 1:
            dist.barrier()

    def gather(self, value: T) -> list[T]:
        """Every process's value (anything that pickles), by rank, on every process."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def first(self, make: Callable[[], T]) -> T:
        """What `make` returns on the main process, on every process; it runs nowhere else.

        Raises:
            ExpungeError: the one `make` raised, on every process, so that none waits for a step that never comes.
        """
        if self.world == 1:
            return make()
        found: list[Any] = [None, None]
        if self.main:
            try:
                found[0] = make()
            except ExpungeError as error:
                found[1] = error
        dist.broadcast_object_list(found, src=0)
        if found[1] is not None:
            raise found[1]
        result: T = found[0]
        return result

    def everywhere(self, work: Callable[[], T]) -> T:
        """What `work` returns on this process, once every process has done its own.

        Raises:
            ExpungeError: where it failed on some process, the first one's error, on every process, so that none waits
                for one that has given up.
        """
        if self.world == 1:
            return work()
        done: list[T] = []
        failed: ExpungeError | None = None
        try:
            done.append(work())
        except ExpungeError as error:
            failed = error
        errors = [error for error in self.gather(failed) if error is not None]
        if errors:
            raise errors[0]
        return done[0]

    def require_same(self, what: str, value: Any) -> None:
        """Refuse to go on where processes do not hold the same.

        Args:
            what: names the value in the message.
            value: small and comparable, e.g. a digest.

        Raises:
            DataError: on every process, naming those that differ from the main one.
        """
        values = self.gather(value)
        others = [rank for rank, other in enumerate(values) if other != values[0]]
        if others:
            raise DataError(
                f"the processes disagree on {what}: {', '.join(f'process {rank}' for rank in others)} of {self.world} "
                f"found {'something else' if len(str(value)) > 80 else values[others[0]]!r} than process 0"
                f"{'' if len(str(value)) > 80 else f' ({values[0]!r})'}",
                hint="every machine must read the same files: compare them, or keep them in one shared folder",
            )


def processes() -> Processes:
    """The group this process has joined; alone where it joined none."""
    if not (dist.is_available() and dist.is_initialized()):
        return Processes()
    return Processes(dist.get_rank(), dist.get_world_size())


def join(device: torch.device) -> Processes:
    """Join the other processes a launcher started, if it did.

    Args:
        device: where this process computes; NCCL carries tensors between GPUs, gloo everything else.
    """
    if launched() and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
        atexit.register(_leave)
    return processes()


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def own_device(device: torch.device) -> torch.device:
    """Where this process computes: on a machine with several GPUs, each process has its own.

    Args:
        device: as asked for; an index is kept.
    """
    if device.type != "cuda" or device.index is not None or not launched():
        return device
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(own)
    return own
