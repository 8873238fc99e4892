"""The plain sum: what a run does without a combining rule, said by name."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from expunge.methods.workshop import Workshop
from expunge.train.wrappers.base import Combine, CombineWrapper, StepPass


class Sum(CombineWrapper):
    """Adds the roles' weighted gradients up; displaces a combining rule that a method brings along."""

    name: ClassVar[str] = "sum"
    paper: ClassVar[str] = "the method's own objective"

    def build(self, workshop: Workshop, model: nn.Module) -> Combine:
        """The rule."""
        return SumCombine()


class SumCombine(Combine):
    """One pass over all roles."""

    def __call__(self, step: StepPass) -> None:
        """Make the gradient of every role together the step's."""
        step.set(step.gradient(*step.roles).tensors)
