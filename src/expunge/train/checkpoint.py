"""Resumable state on disk, replaced atomically: a reader finds the old checkpoint or the new one, never half of one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from expunge.errors import DataError, ExpungeError, StoppedError
from expunge.runs.run import checkpoint_path, checkpoint_paths
from expunge.runs.store import sync_files

if TYPE_CHECKING:
    from expunge.train.engine import Engine

SCHEMA = 1


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

    def save(self, engine: Engine) -> None:
        """Write the engine's state and drop what `keep` no longer covers.

        Raises:
            StoppedError: the weights are not finite any more, or the state could not be written; the checkpoints that
                were there are untouched.
        """
        final = self.path(engine.step)
        _require_finite(engine)
        if engine.accelerator.is_main_process and not final.exists():
            partial = self.folder / f".partial-{engine.step:06d}"
            try:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                _write(partial, engine)
                partial.replace(final)
            except (OSError, RuntimeError, SafetensorError) as error:
                shutil.rmtree(partial, ignore_errors=True)
                kept = self.steps()
                raise StoppedError(
                    f"checkpoint of step {engine.step} could not be written to {self.folder}: {error}",
                    hint="free disk space, then run the same command: it resumes from "
                    + (f"step {kept[-1]}" if kept else "the start"),
                ) from error
            for step in self.steps()[: -self.keep]:
                shutil.rmtree(self.path(step), ignore_errors=True)
        engine.accelerator.wait_for_everyone()

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


def _weights(model: Any) -> dict[str, torch.Tensor]:
    """Parameters (each tied one once) and persistent buffers by name."""
    persistent = set(model.state_dict())
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    return {name: parameter.detach() for name, parameter in model.named_parameters()} | buffers


def _require_finite(engine: Engine) -> None:
    """An update can break the weights after a loss that was still a number."""
    broken = [name for name, tensor in _weights(engine.model).items() if not torch.isfinite(tensor).all()]
    if broken:
        raise StoppedError(
            f"step {engine.step} left weights that are not finite ({len(broken)} tensors, first {broken[0]})",
            hint="earlier checkpoints are kept; lower train.learning_rate",
        )


def _read(folder: Path, engine: Engine) -> None:
    weights = load_file(folder / "model.safetensors")
    state: dict[str, Any] = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    with torch.no_grad():
        for name, tensor in _weights(engine.model).items():
            tensor.copy_(weights[name])
    engine.load_state_dict(state)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def _write(folder: Path, engine: Engine) -> None:
    tensors = {name: tensor.cpu().contiguous() for name, tensor in _weights(engine.model).items()}
    save_file(tensors, folder / "model.safetensors")
    torch.save(engine.state_dict(), folder / "state.pt")
    (folder / "checkpoint.json").write_text(json.dumps({"schema": SCHEMA, "step": engine.step}))
    sync_files(folder)
