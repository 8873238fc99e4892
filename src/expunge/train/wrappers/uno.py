"""UNO: retain descent with a penalty on the angle between the forget and the retain gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from expunge.methods.workshop import Workshop
from expunge.train.gradients import Gradients, added, norm, scaled, squared_cosine
from expunge.train.wrappers.base import Combine, Gradient, StepPass
from expunge.train.wrappers.retaining import RetainingCombine, forget_gradient, retain_gradient


class UNO(RetainingCombine):
    """`g = g_r + penalty * grad cos^2(g_f, g_r)`, with no ascent: after it, retaining does not move what is forgotten.

    The penalty's gradient is `H_f v_f + H_r v_r`; each Hessian product is a central finite difference of two more
    gradients, so a step costs six passes instead of two and needs no second derivative of the attention kernel. The
    exact product is not offered: a step's gradients are made micro-batch by micro-batch, with their graphs released.
    Published for image models; no values for language models exist. A stored implementation of the authors forms both
    gradients without a graph, so that its penalty has no gradient at all; not reproduced.
    """

    name: ClassVar[str] = "uno"
    paper: ClassVar[str] = "Mandal & Gottwald, Unlearning via loss-gradient orthogonalisation, arXiv 2506.04712"
    experimental: ClassVar[bool] = True

    penalty: float = Field(default=10.0, ge=0)
    """Weight of cos^2, in [0, 1], beside the retain loss in nats (authors: 1e5 for a VAE; ours: 10)."""
    forget_weight: float = Field(default=0.0, ge=0)
    """Weight of the method's own forget gradient, added to the step; 0: none (published)."""
    relative_step: float = Field(default=1e-3, gt=0, le=0.1)
    """Length of the finite difference, as a share of the weights' norm."""

    def build(self, workshop: Workshop, model: nn.Module) -> UNOCombine:
        """The rule."""
        return UNOCombine(self)


class UNOCombine(Combine):
    """The rule at work.

    Args:
        config: its keys.
    """

    def __init__(self, config: UNO) -> None:
        self.config = config

    def __call__(self, step: StepPass) -> None:
        """Set the retain gradient with the penalty's, and log cos^2."""
        forget, forget_draws = _drawn(forget_gradient, step)
        retain, retain_draws = _drawn(retain_gradient, step)
        penalty = squared_cosine(forget.tensors, retain.tensors)
        tensors = dict(retain.tensors)
        if self.config.penalty and penalty.value > 0:
            for direction, pass_, draws in (
                (penalty.forget, forget_gradient, forget_draws),
                (penalty.retain, retain_gradient, retain_draws),
            ):
                product = hessian_product(
                    partial(_again, pass_, step, draws),
                    step.named,
                    direction,
                    relative_step=self.config.relative_step,
                )
                tensors = added(tensors, product, self.config.penalty)
        if self.config.forget_weight:
            tensors = added(tensors, forget.tensors, self.config.forget_weight)
        step.set(tensors)
        step.log("squared_cosine", penalty.value)


def hessian_product(
    gradient: Callable[[], Gradients],
    named: Mapping[str, nn.Parameter],
    direction: Gradients,
    *,
    relative_step: float,
) -> dict[str, Tensor]:
    """`H v` by a central difference, `(g(theta + h v) - g(theta - h v)) / 2h` with `h ||v|| = relative_step ||theta||`.

    Args:
        gradient: the loss's gradient at the present weights, the same function both times.
        named: the weights; they have their bits back afterwards, also after an exception.
        direction: v; zero gives zero.
        relative_step: length of the difference as a share of the weights' norm: too large and the Hessian changes on
            the way, too small and rounding is all that is left.
    """
    length = norm(direction)
    if length == 0:
        return scaled(direction, 0.0)
    weights = {name: named[name].detach() for name in direction}
    h = relative_step * (norm(weights) or 1.0) / length
    with shifted(weights, direction, h):
        ahead = gradient()
    with shifted(weights, direction, -h):
        behind = gradient()
    return scaled(added(ahead, behind, -1.0), 1 / (2 * h))


@contextmanager
def shifted(weights: Mapping[str, Tensor], direction: Gradients, amount: float) -> Iterator[None]:
    """Inside, the weights lie at `theta + amount * direction`; afterwards they have the bits they had."""
    before = {name: tensor.clone() for name, tensor in weights.items()}
    try:
        with torch.no_grad():
            for name, tensor in weights.items():
                tensor.add_(direction[name], alpha=amount)
        yield
    finally:
        with torch.no_grad():
            for name, tensor in weights.items():
                tensor.copy_(before[name])


class _Draws(NamedTuple):
    """State of the random generators: dropout must hit the same entries in every pass of a difference."""

    cpu: Tensor
    cuda: list[Tensor]


def _drawn(pass_: Callable[[StepPass], Gradient], step: StepPass) -> tuple[Gradient, _Draws]:
    draws = _Draws(torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])
    return pass_(step), draws


def _again(pass_: Callable[[StepPass], Gradient], step: StepPass, draws: _Draws) -> dict[str, Tensor]:
    """The pass once more, at the present weights and with the same draws."""
    with torch.random.fork_rng(devices=range(len(draws.cuda))):
        torch.set_rng_state(draws.cpu)
        if draws.cuda:
            torch.cuda.set_rng_state_all(draws.cuda)
        return pass_(step).tensors
