"""A run that finds no room: the error says what it needs by its plan, and which setting would need less."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from expunge.config.schema import Recipe
from expunge.errors import ExpungeError, StoppedError

_SIGNS = ("not enough memory", "can't allocate memory", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the machine has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


@contextmanager
def explaining_memory(recipe: Recipe, device: torch.device, *, processes: int = 1) -> Iterator[None]:
    """Say which setting to change where the block runs out of memory.

    Raises:
        StoppedError: by `explain_out_of_memory`.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        # The frames hold the tensors there was no room for; planning needs some room itself.
        traceback.clear_frames(error.__traceback__)
        raise explain_out_of_memory(recipe, device, processes=processes) from error


def explain_out_of_memory(recipe: Recipe, device: torch.device, *, processes: int = 1) -> StoppedError:
    """What a run that ran out of memory prints: what it needs by its plan, and what would need less.

    Args:
        recipe: as it was run.
        device: where.
        processes: how many carried it out.
    """
    # A plan is made with what a run is made with.
    from expunge.train.planning.draft import draft
    from expunge.train.planning.hardware import hardware
    from expunge.train.planning.knobs import knobs

    where = hardware(device.type, processes=processes)
    room = f"{where.name} has {_size(where.memory)}" if where.memory else f"{where.name} has not that much"
    try:
        planned = draft(recipe, where)
        peak = planned.phases.peak.total
        ways = knobs(planned, where)
    # Where even the plan finds no room, the message must still arrive.
    except (ExpungeError, RuntimeError, MemoryError):
        return StoppedError(
            f"out of memory on {where.name}",
            hint="lower train.token_budget or set train.gradient_checkpointing=true; "
            "`expunge plan` says what each needs",
        )
    known = [f"{knob.setting} (about {_size(knob.memory)})" for knob in ways]
    return StoppedError(
        f"out of memory: by its plan this run needs about {_size(peak)} for tensors at its peak, "
        f"{_size(where.needed(peak))} with everything around them, and {room}",
        hint="one of these needs less: " + ", ".join(known) + "; the last checkpoint is kept"
        if known
        else "free memory, or use a larger device: no setting of this recipe needs less",
    )


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
