"""Weights and optimizer state of a divided model on disk: every process writes its parts (PyTorch's own format).

Read back, they fit any layout: more or fewer processes, whole copies, or one process alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from expunge.train.sharding import divided_like, whole

if TYPE_CHECKING:
    from expunge.train.engine import Engine

FOLDER = "sharded"
_WEIGHT, _OPTIMIZER = "weight", "optimizer"


def write_parts(folder: Path, engine: Engine) -> None:
    """Write every process's part of the trained weights and of the optimizers' state; called by all together."""
    tensors = {f"{_WEIGHT}|{name}": parameter.detach() for name, parameter in engine.trained.items()}
    names = {id(parameter): name for name, parameter in engine.trained.items()}
    for number, optimizer in enumerate(engine.optimizers.each):
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"{_OPTIMIZER}|{number}|{names[id(parameter)]}|{key}"] = value
    save(tensors, checkpoint_id=folder, no_dist=engine.processes.world == 1)


def read_parts(folder: Path, engine: Engine) -> dict[str, dict[str, Tensor]]:
    """Put the weights back; called by every process together.

    Returns:
        Optimizer state, `{"<optimizer>|<parameter>": {key: tensor}}`, each tensor divided as its parameter is.
    """
    stored: Mapping[str, Any] = FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors = {key: _place(key, meta, engine) for key, meta in stored.items()}
    load(tensors, checkpoint_id=folder, no_dist=engine.processes.world == 1)
    found: dict[str, dict[str, Tensor]] = {}
    with torch.no_grad():
        for key, tensor in tensors.items():
            kind, *rest = key.split("|")
            if kind == _WEIGHT:
                engine.trained[rest[0]].copy_(tensor)
            else:
                number, name, own = rest
                found.setdefault(f"{number}|{name}", {})[own] = tensor
    return found


def _place(key: str, meta: TensorStorageMetadata, engine: Engine) -> Tensor:
    """Where a stored tensor is read to: like its parameter where it has its shape."""
    name = key.split("|")[1 if key.startswith(_WEIGHT) else 2]
    parameter = engine.trained[name].detach()
    if meta.size == parameter.shape:
        return torch.zeros_like(parameter, dtype=meta.properties.dtype)
    return torch.zeros(meta.size, dtype=meta.properties.dtype)


def load_optimizers(engine: Engine, saved: Mapping[str, Any], parts: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Restore the optimizers from their settings in `saved` and their tensors in `parts`."""
    names = {id(parameter): name for name, parameter in engine.trained.items()}
    states = []
    for number, (optimizer, settings) in enumerate(zip(engine.optimizers.each, saved["optimizers"], strict=True)):
        order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        keyed = {
            index: dict(parts[key])
            for index, parameter in enumerate(order)
            if (key := f"{number}|{names[id(parameter)]}") in parts
        }
        states.append({**settings, "state": keyed})
    engine.optimizers.load_state_dict({**saved, "optimizers": states})


def divide_optimizers(engine: Engine) -> None:
    """After whole tensors were loaded: each process keeps its part of them."""
    for optimizer in engine.optimizers.each:
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[key] = divided_like(value, parameter)


def gathered_state(state: Any) -> Any:
    """Nested mappings and lists with every divided tensor whole, on the CPU; called by every process together."""
    if isinstance(state, Tensor):
        return whole(state.detach()).cpu()
    if isinstance(state, Mapping):
        return {key: gathered_state(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [gathered_state(value) for value in state]
    return state
