"""A step over losses that are plain functions of one vector, for combining rules without a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from expunge.train.wrappers.base import Gradient

Loss = Callable[[Tensor], Tensor]


class ToyStep:
    """See `expunge.train.wrappers.base.StepPass`."""

    def __init__(
        self,
        theta: Tensor,
        losses: Mapping[str, Loss],
        *,
        weights: Mapping[str, float] | None = None,
        step: int = 0,
        epoch: int = 0,
        total_steps: int = 100,
        steps_per_epoch: int = 10,
    ) -> None:
        self.theta = nn.Parameter(theta)
        self.named: Mapping[str, nn.Parameter] = {"w": self.theta}
        self.fns, self.weights = losses, weights or {}
        self.roles = tuple(losses)
        self.step, self.epoch, self.total_steps, self.steps_per_epoch = step, epoch, total_steps, steps_per_epoch
        self.logged: dict[str, float] = {}
        self.asked: list[tuple[str, ...]] = []

    def gradient(self, *roles: str) -> Gradient:
        self.asked.append(roles)
        values = {role: self.fns[role](self.theta) for role in roles}
        total = sum((self.weights.get(role, 1.0) * value for role, value in values.items()), torch.zeros(()))
        (tensor,) = torch.autograd.grad(total, [self.theta])
        return Gradient(
            {"w": tensor}, {role: float(value.detach()) for role, value in values.items()}, float(total.detach())
        )

    def set(self, tensors: Mapping[str, Tensor]) -> None:
        self.theta.grad = tensors["w"]

    def log(self, name: str, value: float) -> None:
        self.logged[name] = value

    @property
    def result(self) -> list[float]:
        assert self.theta.grad is not None
        return [float(value) for value in self.theta.grad]


def linear(*slope: float) -> Loss:
    """A loss with this gradient everywhere."""
    vector = torch.tensor(slope, dtype=torch.float64)
    return lambda theta: theta @ vector
