"""A retain weight that grows with how far the retain loss has risen above where it began."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, model_validator
from torch import nn

from expunge.methods.workshop import Workshop
from expunge.train.gradients import added
from expunge.train.wrappers.base import Combine, StepPass
from expunge.train.wrappers.retaining import RetainingCombine, constrained_loss, forget_gradient, retain_gradient


class AdaptiveRetain(RetainingCombine):
    """The retain gradient times `clip(a b^(L_r - mean of L_r in epoch 0) + c, low, high)`; at first times `low`.

    L_r is the step's retain loss before the step, without weight and without gradient; where it is not above its mean,
    and in epoch 0, the weight is `low`. The mean is over the steps of the first pass, so it does not depend on
    micro-batches. (The release divides a sum of micro-batch means by a number of examples, which makes that mean too
    small; not reproduced.) The weight comes on top of the method's alpha.
    """

    name: ClassVar[str] = "adaptive_retain"
    paper: ClassVar[str] = "Agrawal & Huang, SHA256 at SemEval-2025 Task 4, arXiv 2504.12996"

    a: float = Field(default=0.3, gt=0)
    """Factor of the exponential (authors: 0.3)."""
    b: float = Field(default=6.0, gt=1)
    """Its base (authors: 6)."""
    c: float = 0.8
    """What is added to it (authors: 0.8)."""
    low: float = Field(default=1.2, ge=0)
    """Smallest weight, and the one of the first epoch (authors: 1.2)."""
    high: float = Field(default=2.8, gt=0)
    """Largest weight (authors: 2.8 in the paper, 2.3 in the code)."""
    decimals: int | None = Field(default=None, ge=0)
    """Round the weight to so many decimals (authors' code: 1); exact unless given."""
    term: str | None = None
    """The retain term that is watched; all of them together unless given."""

    @model_validator(mode="after")
    def _ordered(self) -> AdaptiveRetain:
        if self.low > self.high:
            raise ValueError(f"low={self.low:g} is above high={self.high:g}")
        return self

    def build(self, workshop: Workshop, model: nn.Module) -> AdaptiveRetainCombine:
        """The rule."""
        return AdaptiveRetainCombine(self)


class AdaptiveRetainCombine(Combine):
    """The rule at work.

    Args:
        config: its keys.
    """

    def __init__(self, config: AdaptiveRetain) -> None:
        self.config = config
        self.total, self.steps = 0.0, 0
        """Sum and number of the first epoch's losses."""

    def __call__(self, step: StepPass) -> None:
        """Weigh the retain gradient."""
        retain, forget = retain_gradient(step), forget_gradient(step)
        loss = constrained_loss(retain.losses, self.config.term, "adaptive_retain")
        if step.epoch == 0:
            self.total, self.steps = self.total + loss, self.steps + 1
            weight = self.config.low
        else:
            weight = adaptive_weight(loss - self.total / self.steps, self.config)
        step.set(added(forget.tensors, retain.tensors, weight))
        step.log("retain_weight", weight)

    def state_dict(self) -> dict[str, Any]:
        """The mean so far."""
        return {"total": self.total, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Combine.load_state_dict`."""
        self.total, self.steps = float(state["total"]), int(state["steps"])


def adaptive_weight(risen: float, config: AdaptiveRetain) -> float:
    """`clip(a b^risen + c, low, high)`, `low` where `risen <= 0`.

    Args:
        risen: nats by which the retain loss lies above its mean of the first epoch.
        config: a, b, c, low, high and decimals.

    Source:
        Agrawal & Huang, arXiv 2504.12996.
    """
    if risen <= 0:
        return config.low
    # The power is cut off where a float would overflow, far above any weight.
    value = config.a * math.exp(min(risen * math.log(config.b), 500.0)) + config.c
    weight = min(max(value, config.low), config.high)
    return weight if config.decimals is None else round(weight, config.decimals)
