"""Optimizers and the learning-rate schedule."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import get_scheduler

from expunge.config.schema import Recipe, TrainSection
from expunge.errors import UsageError
from expunge.train.muon import Muon


def require_optimizer(recipe: Recipe, device: torch.device) -> None:
    """Refuse an optimizer that cannot train this recipe's parameters on this device.

    Raises:
        UsageError: 8-bit state without bitsandbytes, on a device it does not know, or in parts (`train.fsdp`); Muon
            for adapters: an orthogonal change of two factors is none of their product.
    """
    name = recipe.train.optim
    if name == "muon" and recipe.model.use_peft:
        raise UsageError(
            "train.optim=muon with model.use_peft: Muon orthogonalises the change of a weight, and that of an "
            "adapter's two factors is another one",
            hint="set train.optim=adamw",
        )
    if "8bit" not in name:
        return
    known = ("cuda",) if name.startswith("paged") else ("cuda", "cpu")
    if device.type not in known:
        raise UsageError(
            f"train.optim={name} works on {' and '.join(known)}, and this is to run on {device.type}",
            hint=f"set train.optim={'adamw_8bit' if device.type == 'cpu' else 'adamw'}",
        )
    if recipe.train.fsdp:
        raise UsageError(
            f"train.optim={name} keeps blocks of whole weights, and train.fsdp divides them",
            hint="set train.optim=adamw: its state is divided among the processes as well",
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError(
            f"train.optim={name} needs the package bitsandbytes", hint='pip install "expunge[bitsandbytes]"'
        )


class Optimizers:
    """One or two optimizers that step, schedule and save as one.

    `adamw`: AdamW on everything, fused into one kernel where there is one. `adamw_8bit`, `paged_adamw_8bit`: the same
    with its moments in 8 bits, but for parameters of fewer than 4096 entries. `muon`: Muon on the two-dimensional
    weights of the transformer blocks, AdamW on embeddings, output head and vectors. `sgd`: `theta - lr (g +
    weight_decay theta)` on everything, without momentum. Vectors (norms, biases) get no weight decay.

    Args:
        model: its `requires_grad` parameters are trained.
        settings: the recipe's train section.
        total_steps: optimizer steps of the whole run, for the schedule.
    """

    def __init__(self, model: nn.Module, settings: TrainSection, *, total_steps: int) -> None:
        matrices, others, vectors = _partition(model)
        if settings.optim != "muon":
            others, matrices = [*matrices, *others], []
        groups = [
            {"params": others, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        # Where layers are frozen, Muon's matrices may be all there is.
        self.each: list[torch.optim.Optimizer] = [_first(groups, settings, model)] if groups else []
        if matrices:
            self.each.append(Muon(matrices, lr=settings.muon_learning_rate, weight_decay=settings.weight_decay))
        warmup = settings.warmup_steps or round(settings.warmup_ratio * total_steps)
        self.schedules = [
            get_scheduler(settings.lr_scheduler_type, o, num_warmup_steps=warmup, num_training_steps=total_steps)
            for o in self.each
        ]

    @property
    def learning_rate(self) -> float:
        """The rate of the next step (AdamW's or SGD's; Muon's where nothing else is trained)."""
        return float(self.schedules[0].get_last_lr()[0])

    def step(self) -> None:
        """Update the weights, advance the schedule, clear the gradients."""
        for optimizer, schedule in zip(self.each, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs to continue bit for bit."""
        return {
            "optimizers": [optimizer.state_dict() for optimizer in self.each],
            "schedules": [schedule.state_dict() for schedule in self.schedules],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`'s result."""
        for optimizer, saved in zip(self.each, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.load_schedules(state["schedules"])

    def load_schedules(self, states: Sequence[dict[str, Any]]) -> None:
        """Restore the schedules alone, where the optimizers' state is kept elsewhere."""
        for schedule, saved in zip(self.schedules, states, strict=True):
            schedule.load_state_dict(saved)


def _first(groups: list[dict[str, Any]], settings: TrainSection, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of everything Muon does not take."""
    if settings.optim == "sgd":
        # PyTorch's fused SGD, unlike its fused AdamW, does not know divided weights.
        divided = any(isinstance(parameter, DTensor) for parameter in model.parameters())
        return torch.optim.SGD(groups, lr=settings.learning_rate, fused=_fused(model) and not divided)
    adam: dict[str, Any] = {
        "lr": settings.learning_rate,
        "betas": (settings.adam_beta1, settings.adam_beta2),
        "eps": settings.adam_epsilon,
    }
    if "8bit" not in settings.optim:
        return torch.optim.AdamW(groups, fused=_fused(model), **adam)
    from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit

    kind = PagedAdamW8bit if settings.optim.startswith("paged") else AdamW8bit
    packed: torch.optim.Optimizer = kind(groups, **adam)
    return packed


def _fused(model: nn.Module) -> bool:
    kinds = {parameter.device.type for parameter in model.parameters()}
    return kinds <= {"cpu", "cuda"}


def _partition(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters as (matrices of the blocks, embeddings and head, vectors)."""
    ends = {id(p) for p in _ends(model)}
    trainable = [p for p in model.parameters() if p.requires_grad]
    vectors = [p for p in trainable if p.ndim < 2]
    others = [p for p in trainable if p.ndim >= 2 and (id(p) in ends or p.ndim > 2)]
    taken = {id(p) for p in (*vectors, *others)}
    return [p for p in trainable if id(p) not in taken], others, vectors


def _ends(model: Any) -> list[nn.Parameter]:
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    return [module.weight for module in modules if module is not None]
