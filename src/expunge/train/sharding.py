"""FSDP2: every process holds a part of each weight, gradient and optimizer state, and gathers a block when it is used.

PyTorch's own `fully_shard`, on GPUs and on CPU alike. A sharded parameter is a `DTensor`: elementwise arithmetic and
optimizers work on the parts, whatever needs a sum over entries adds the parts up (`expunge.train.gradients`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from expunge.errors import UsageError
from expunge.models.blocks import blocks
from expunge.models.processes import processes
from expunge.train.deepspeed import is_divided, whole_parameter


class Named(NamedTuple):
    """A tensor of a model with its name."""

    name: str
    tensor: Tensor


def shard(model: Any) -> None:
    """Divide a model's weights among the processes, in place: block by block, then the rest.

    Args:
        model: the same weights on every process, on its device; what is frozen stays so.

    Raises:
        UsageError: there is only one process, so nothing to divide among.
    """
    where = processes()
    if where.world == 1:
        raise UsageError(
            "train.fsdp divides a model among processes, and there is only one",
            hint="start several with --num_processes N or torchrun, or leave train.fsdp out",
        )
    device = next(model.parameters()).device
    mesh = init_device_mesh(device.type, (where.world,))
    for block in blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` divided this model."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, gathered where it is divided (then called by every process together)."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def divided_like(tensor: Tensor, other: Tensor) -> Tensor:
    """This process's part of `tensor`, divided as `other` is; itself where that is whole."""
    if not isinstance(other, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)


def gathered(model: nn.Module, names: Mapping[str, Any]) -> Iterator[Named]:
    """Some parameters of a model one after the other, each whole, on the CPU; called by every process together."""
    for name, parameter in model.named_parameters():
        if name in names:
            tensor = whole_parameter(parameter) if is_divided(parameter) else whole(parameter.detach()).cpu()
            yield Named(name, tensor)


@torch.no_grad()
def copy_trained(source: nn.Module, target: nn.Module | None, names: Mapping[str, Any]) -> None:
    """Write what was trained in a divided model into a whole one.

    Args:
        source: the divided model; every process takes part in gathering it.
        target: the whole model on this process; None on processes that keep none.
        names: parameters that were trained.
    """
    kept = dict(target.named_parameters()) if target is not None else {}
    for name, tensor in gathered(source, names):
        if target is not None:
            kept[name].copy_(tensor)
