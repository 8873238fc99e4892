"""Gradient surgery: retain descent at right angles to the forget gradient."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from expunge.methods.workshop import Workshop
from expunge.train.gradients import added, cosine, orthogonal
from expunge.train.wrappers.base import Combine, StepPass
from expunge.train.wrappers.retaining import RetainingCombine, forget_gradient, retain_gradient


class GradientSurgery(RetainingCombine):
    """`g = g_r - (<g_r, g_f> / ||g_f||^2) g_f`: a step that leaves the forget loss as it is to first order.

    On its own it does not forget: published as the baseline of UNO and as the even steps of an alternation. Set
    `forget` to `alternate` for that one, or to `add` for both in every step.
    """

    name: ClassVar[str] = "gradient_surgery"
    paper: ClassVar[str] = "baseline in Mandal & Gottwald, UNO, arXiv 2506.04712; Yu et al., arXiv 2001.06782"

    forget: Literal["none", "alternate", "add"] = "none"
    """What the forget gradient does besides: nothing (published baseline); it is the step's gradient in the first,
    third, ... step (published alternation); or it is added in every step, times `forget_weight`."""
    forget_weight: float = Field(default=1.0, gt=0)
    """Weight of the forget gradient in `alternate` and `add`, on top of the method's gamma."""

    def build(self, workshop: Workshop, model: nn.Module) -> SurgeryCombine:
        """The rule."""
        return SurgeryCombine(self)


class SurgeryCombine(Combine):
    """The rule at work.

    Args:
        config: its keys.
    """

    def __init__(self, config: GradientSurgery) -> None:
        self.config = config

    def __call__(self, step: StepPass) -> None:
        """Set the retain gradient's orthogonal part, the forget gradient, or both."""
        forget, retain = forget_gradient(step).tensors, retain_gradient(step).tensors
        step.log("cosine", cosine(forget, retain))
        weight = self.config.forget_weight
        if self.config.forget == "alternate" and step.step % 2 == 0:
            step.set({name: tensor * weight for name, tensor in forget.items()})
            return
        tensors = orthogonal(retain, forget)
        step.set(added(tensors, forget, weight) if self.config.forget == "add" else tensors)
