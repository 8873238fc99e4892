"""Resumable state on disk, replaced atomically: a reader finds the old checkpoint or the new one, never half of one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from expunge.errors import DataError, ExpungeError, StoppedError, UsageError
from expunge.runs.run import checkpoint_path, checkpoint_paths
from expunge.runs.store import sync_files
from expunge.train import deepspeed
from expunge.train.gradients import local
from expunge.train.sharded_checkpoint import (
    FOLDER,
    divide_optimizers,
    gathered_state,
    load_optimizers,
    read_parts,
    write_parts,
)
from expunge.train.sharding import divided_like

if TYPE_CHECKING:
    from expunge.train.engine import Engine

SCHEMA = 2
_KEPT = "kept"
"""An empty file that marks a checkpoint the newest ones do not push out."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: `RUN/checkpoints`.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, *, keep: int = 1) -> None:
        self.folder, self.keep = folder, keep

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, ascending."""
        return list(checkpoint_paths(self.folder))

    def path(self, step: int) -> Path:
        """The folder of one step."""
        return checkpoint_path(self.folder, step)

    @property
    def kept(self) -> int | None:
        """The step whose checkpoint stays beside the newest ones, if there is one."""
        return max((step for step in self.steps() if (self.path(step) / _KEPT).exists()), default=None)

    def save(self, engine: Engine, *, keep: bool = False) -> None:
        """Write the engine's state and drop what `keep` no longer covers; called by every process together.

        Args:
            engine: what is saved.
            keep: this checkpoint stays until a later one is kept instead.

        Raises:
            StoppedError: the weights are not finite any more, or the state could not be written; the checkpoints that
                were there are untouched.
        """
        final, where = self.path(engine.step), engine.processes
        partial = self.folder / f".partial-{engine.step:06d}"
        _require_finite(engine)
        if not where.first(final.exists):
            where.first(lambda: self._guarded(engine, partial, lambda: _make(partial)))
            if (zero3 := engine.zero3) is not None:
                self._guarded(engine, partial, lambda: zero3.save(partial / deepspeed.FOLDER))
            elif engine.sharded:
                self._guarded(engine, partial, lambda: write_parts(partial / FOLDER, engine))
            state = _state(engine)
            where.first(lambda: self._guarded(engine, partial, lambda: _write(partial, final, engine, state, keep)))
        where.first(self._prune)

    def _guarded(self, engine: Engine, partial: Path, write: Callable[[], None]) -> None:
        try:
            write()
        except (OSError, RuntimeError, SafetensorError, CheckpointException) as error:
            shutil.rmtree(partial, ignore_errors=True)
            kept = self.steps()
            raise StoppedError(
                f"checkpoint of step {engine.step} could not be written to {self.folder}: {_first_line(error)}",
                hint="free disk space, then run the same command: it resumes from "
                + (f"step {kept[-1]}" if kept else "the start"),
            ) from error

    def _prune(self) -> None:
        for partial in self.folder.glob(".partial-*"):
            # Of a process that was killed while it wrote.
            shutil.rmtree(partial, ignore_errors=True)
        for step in self.steps()[: -self.keep]:
            if step != self.kept:
                shutil.rmtree(self.path(step), ignore_errors=True)

    def restore_weights(self, engine: Engine, step: int) -> None:
        """Give the model the weights it had after `step`; called by every process together.

        Raises:
            DataError: that checkpoint is gone or cannot be read.
        """
        folder = self.path(step)
        try:
            _read_weights(folder, engine)
        except Exception as error:
            raise DataError(
                f"the checkpoint {folder} cannot be read: {type(error).__name__}: {_first_line(error)}",
                hint="start the run anew with --overwrite",
            ) from error

    def load(self, engine: Engine) -> int | None:
        """Restore the newest checkpoint into the engine; its step, or None where there is none.

        Raises:
            DataError: it cannot be read. An older one is not taken instead without being asked for.
            UsageError: it belongs to other rows or batch sizes.
        """
        steps = self.steps()
        if not steps:
            return None
        folder = self.path(steps[-1])
        try:
            _read(folder, engine)
        except ExpungeError:
            raise
        # Damaged files make torch and safetensors raise whatever they stumble over.
        except Exception as error:
            older = f"from step {steps[-2]}" if len(steps) > 1 else "from the start"
            raise DataError(
                f"the checkpoint {folder} cannot be read: {type(error).__name__}: {_first_line(error)}",
                hint=f"delete that folder, then run the same command: it resumes {older}",
            ) from error
        return steps[-1]


def _weights(engine: Engine) -> dict[str, Tensor]:
    """What training can change: trained parameters (each tied one once) and persistent buffers, by name."""
    persistent = set(engine.model.state_dict())
    buffers = {name: buffer for name, buffer in engine.model.named_buffers() if name in persistent}
    return {name: deepspeed.own_part(parameter) for name, parameter in engine.trained.items()} | buffers


def _require_finite(engine: Engine) -> None:
    """An update can break the weights after a loss that was still a number."""
    own = [name for name, tensor in _weights(engine).items() if not torch.isfinite(local(tensor)).all()]
    broken = sorted({name for names in engine.processes.gather(own) for name in names})
    if broken:
        raise StoppedError(
            f"step {engine.step} left weights that are not finite ({len(broken)} tensors, first {broken[0]})",
            hint="earlier checkpoints are kept; lower train.learning_rate",
        )


def _read(folder: Path, engine: Engine) -> None:
    _require_kind(folder, engine)
    parts = _read_weights(folder, engine)
    state: dict[str, Any] = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    saved = state.pop("optimizers")
    engine.load_state_dict(state)
    if engine.zero3:
        engine.optimizers.load_schedules(saved["schedules"])
    elif parts is not None:
        load_optimizers(engine, saved, parts)
    else:
        engine.optimizers.load_state_dict(saved)
        divide_optimizers(engine)


def _require_kind(folder: Path, engine: Engine) -> None:
    if (folder / deepspeed.FOLDER).is_dir() != (engine.zero3 is not None):
        written, now = ("without", "with") if engine.zero3 else ("with", "without")
        raise UsageError(
            f"the checkpoint {folder} was written {written} DeepSpeed, and this run goes on {now} it",
            hint="resume by the same command, or start the run anew with --overwrite",
        )


def _read_weights(folder: Path, engine: Engine) -> dict[str, dict[str, Tensor]] | None:
    """Put weights back; the optimizers' tensors where they were stored in parts as well."""
    parts = read_parts(folder / FOLDER, engine) if (folder / FOLDER).is_dir() else None
    if engine.zero3:
        engine.zero3.load(folder / deepspeed.FOLDER)
    weights = load_file(folder / "model.safetensors")
    in_parts = parts is not None or engine.zero3 is not None
    with torch.no_grad():
        for name, tensor in _weights(engine).items():
            if not (in_parts and name in engine.trained):
                tensor.copy_(divided_like(weights[name], tensor))
    return parts


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")


def _make(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def _state(engine: Engine) -> dict[str, Any]:
    """What is stored beside the weights; of a divided model, with everything but the optimizers' tensors made whole."""
    if engine.zero3:  # DeepSpeed writes the optimizer's state itself.
        schedules = [schedule.state_dict() for schedule in engine.optimizers.schedules]
        return engine.state_dict() | {"optimizers": {"optimizers": [], "schedules": schedules}}
    state = engine.state_dict() | {"optimizers": engine.optimizers.state_dict()}
    if not engine.sharded:
        return state
    settings = [{**each, "state": {}} for each in state["optimizers"]["optimizers"]]
    state["optimizers"] = {**state["optimizers"], "optimizers": settings}
    found: dict[str, Any] = gathered_state(state)
    return found


def _write(partial: Path, final: Path, engine: Engine, state: dict[str, Any], keep: bool) -> None:
    tensors = {
        name: tensor.cpu().contiguous()
        for name, tensor in _weights(engine).items()
        if not (engine.sharded and name in engine.trained)
    }
    save_file(tensors, partial / "model.safetensors")
    torch.save(state, partial / "state.pt")
    (partial / "checkpoint.json").write_text(json.dumps({"schema": SCHEMA, "step": engine.step}))
    if keep:
        (partial / _KEPT).touch()
    sync_files(partial)
    partial.replace(final)
