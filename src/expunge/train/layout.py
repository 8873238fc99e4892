"""How a run is spread over processes: what goes together, and what becomes of the others when one ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from expunge.config.schema import Recipe
from expunge.errors import PeerLostError, UsageError
from expunge.models.processes import Processes
from expunge.train.deepspeed import asked_for, require_zero3
from expunge.train.wrappers.select import Wrapped

_LOST = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL")


def require_layout(recipe: Recipe, wrapped: Wrapped, where: Processes) -> None:
    """Refuse what a divided model cannot do.

    Raises:
        UsageError: `train.fsdp` with one process, or with a wrapper or optimizer that reads whole weights; what is not
            carried out under DeepSpeed; Accelerate's FSDP instead of ours.
    """
    if asked_for("DEEPSPEED"):
        require_zero3(recipe, wrapped, where)
    if asked_for("FSDP") and not recipe.train.fsdp:
        raise UsageError(
            "accelerate launch asks for FSDP, but this recipe does not: every process would hold the whole model",
            hint="set train.fsdp=true, or launch without Accelerate's FSDP settings",
        )
    if not recipe.train.fsdp:
        return
    if where.world == 1:
        raise UsageError(
            "train.fsdp divides a model among processes, and there is only one",
            hint="start several with --num_processes N or torchrun, or leave train.fsdp out",
        )
    around = [wrapper for wrapper in (wrapped.combine, *wrapped.masks) if wrapper is not None and wrapper.whole_tensors]
    if around:
        raise UsageError(
            f"the wrapper {around[0].name} compares single entries of whole weights, and train.fsdp divides them",
            hint="leave train.fsdp out (every process then holds the whole model), or train adapters: model.use_peft",
        )
    if recipe.train.optim == "muon":
        raise UsageError(
            "train.optim=muon orthogonalises whole matrices, and train.fsdp divides them", hint="set train.optim=adamw"
        )


@contextmanager
def together() -> Iterator[None]:
    """One message, not a stack of them, when a process of this run has ended and this one notices.

    Raises:
        PeerLostError: another process is gone.
    """
    try:
        yield
    except (RuntimeError, torch.distributed.DistError) as error:
        if dist.is_initialized() and any(sign in str(error) for sign in _LOST):
            raise PeerLostError(
                "another process of this run has ended, so this one stops as well",
                hint="its own message says why; the same command resumes from the last checkpoint",
            ) from error
        raise
