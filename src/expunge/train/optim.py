"""Optimizers and the learning-rate schedule."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from expunge.config.schema import TrainSection
from expunge.train.muon import Muon


class Optimizers:
    """One or two optimizers that step, schedule and save as one.

    `adamw`: AdamW on everything. `muon`: Muon on the two-dimensional weights of the transformer blocks, AdamW on
    embeddings, output head and vectors. `sgd`: `theta - lr (g + weight_decay theta)` on everything, without momentum.
    Vectors (norms, biases) get no weight decay.

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
        self.each: list[torch.optim.Optimizer] = [_first(groups, settings, fused=_fused(model))] if groups else []
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
        for schedule, saved in zip(self.schedules, state["schedules"], strict=True):
            schedule.load_state_dict(saved)


def _first(groups: list[dict[str, Any]], settings: TrainSection, *, fused: bool) -> torch.optim.Optimizer:
    """The optimizer of everything Muon does not take."""
    if settings.optim == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, fused=fused)
    return torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
        fused=fused,
    )


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
