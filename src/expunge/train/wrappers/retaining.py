"""What combining rules that weigh forget against retain share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from expunge.errors import UsageError
from expunge.methods.base import Method
from expunge.train.sharding import divided_like
from expunge.train.wrappers.base import CombineWrapper, Gradient, StepPass

RETAIN = "retain"


class RetainingCombine(CombineWrapper):
    """A combining rule that reads the gradient of the retain rows."""

    roles: ClassVar[tuple[str, ...]] = (RETAIN,)

    def require(self, method: Method) -> None:
        """Refuse a method without retain rows, or one that has nothing else.

        Raises:
            UsageError: there is no second gradient; says which rules need one and which do not.
        """
        roles = method.needs().roles
        if RETAIN in roles and len(roles) > 1:
            return
        lack = "retain rows" if RETAIN not in roles else "rows besides the retain rows"
        raise UsageError(
            f"the wrapper {self.name} weighs two gradients and so needs {lack}; {method.name} as configured reads only "
            f"{', '.join(roles)}",
            hint="set data.retain and a method.alpha above 0 (gru, gradient_surgery, uno, dual and adaptive_retain "
            "need retain rows; sum, gru_tau and gru_prox do not)",
        )


def forget_gradient(step: StepPass) -> Gradient:
    """Of every role but retain."""
    return step.gradient(*(role for role in step.roles if role != RETAIN))


def retain_gradient(step: StepPass) -> Gradient:
    """Of the retain role, with the weight the method gives it."""
    return step.gradient(RETAIN)


def constrained_loss(losses: Mapping[str, float], term: str | None, wrapper: str) -> float:
    """One retain term's value, or the sum of all of them, not weighted.

    Raises:
        UsageError: there is no such term.
    """
    if term is None:
        return sum(losses.values())
    if term not in losses:
        raise UsageError(
            f"the wrapper {wrapper} is to watch the term {term!r}, which the retain rows do not have",
            hint=f"they have {', '.join(sorted(losses))}",
        )
    return losses[term]


def on_device(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors made or stored elsewhere, each where its parameter is, and divided among processes as that is."""
    return {name: divided_like(tensor.to(like[name].device), like[name]) for name, tensor in state.items()}
