"""Dual ascent: forgetting under the constraint that the retain loss stays below a bound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from expunge.errors import UsageError
from expunge.methods.workshop import Workshop
from expunge.train.gradients import added
from expunge.train.wrappers.base import Combine, StepPass
from expunge.train.wrappers.retaining import RetainingCombine, constrained_loss, forget_gradient, retain_gradient


class Dual(RetainingCombine):
    """`min L_f subject to L_r <= epsilon`: the retain gradient is multiplied by lambda.

    `lambda <- max(0, lambda + eta (L_r - epsilon))`.
    A step uses the lambda from before its own update; there is one update per optimizer step (or epoch), from the loss
    of the whole step on every process. L_r is not weighted; lambda comes on top of the method's alpha. Works with any
    forget loss.
    """

    name: ClassVar[str] = "dual"
    paper: ClassVar[str] = "Entesari et al., Constrained Entropic Unlearning (PDU), arXiv 2506.05314"

    epsilon: float = 0.3
    """Bound on the retain loss (authors, TOFU: 0.3; MUSE: 0.1 to 1.5). Choose it a little above the retain loss of the
    starting model: below it lambda only grows."""
    dual_lr: float = Field(default=5.0, gt=0)
    """eta (authors, TOFU: 5; MUSE: 1)."""
    initial: float = Field(default=100.0, ge=0)
    """lambda at the start (authors, TOFU: 100; MUSE: 50)."""
    warmup_epochs: float = Field(default=0.0, ge=0)
    """Epochs in which lambda stays as it is (authors: 5 of 10 on TOFU, 3 of 10 on MUSE)."""
    every: Literal["step", "epoch"] = "step"
    """When lambda is updated: after every optimizer step, or after every epoch with the mean of its steps' losses."""
    term: str | None = None
    """The retain term that is constrained, `retain` or `retain_energy`, say; all of them together unless given."""

    def build(self, workshop: Workshop, model: nn.Module) -> DualCombine:
        """The rule with lambda at its start."""
        return DualCombine(self)


class DualCombine(Combine):
    """The rule at work.

    Args:
        config: its keys.
    """

    def __init__(self, config: Dual) -> None:
        self.config = config
        self.multiplier = config.initial
        self.epoch = 0
        self.losses: list[float] = []
        """Retain losses of the steps of `epoch` so far, where lambda is updated by epoch."""

    def __call__(self, step: StepPass) -> None:
        """Weigh the retain gradient by lambda, then update lambda."""
        warmup = round(self.config.warmup_epochs * step.steps_per_epoch)
        if warmup >= step.total_steps:
            raise UsageError(
                f"the wrapper dual warms up for {warmup} of {step.total_steps} steps: lambda would never move",
                hint=f"set warmup_epochs below {step.total_steps / step.steps_per_epoch:g}",
            )
        self._close_epoch(step.epoch)
        retain, forget = retain_gradient(step), forget_gradient(step)
        step.set(added(forget.tensors, retain.tensors, self.multiplier))
        step.log("lambda", self.multiplier)
        loss = constrained_loss(retain.losses, self.config.term, "dual")
        if step.step < warmup:
            return
        if self.config.every == "step":
            self._update(loss)
        else:
            self.losses.append(loss)

    def _close_epoch(self, epoch: int) -> None:
        if epoch != self.epoch and self.losses:
            self._update(sum(self.losses) / len(self.losses))
            self.losses = []
        self.epoch = epoch

    def _update(self, loss: float) -> None:
        self.multiplier = dual_update(
            self.multiplier, loss, epsilon=self.config.epsilon, learning_rate=self.config.dual_lr
        )

    def state_dict(self) -> dict[str, Any]:
        """Lambda, and the losses its next update waits for."""
        return {"multiplier": self.multiplier, "epoch": self.epoch, "losses": list(self.losses)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Combine.load_state_dict`."""
        self.multiplier, self.epoch = float(state["multiplier"]), int(state["epoch"])
        self.losses = [float(loss) for loss in state["losses"]]


def dual_update(multiplier: float, loss: float, *, epsilon: float, learning_rate: float) -> float:
    """`max(0, lambda + eta (L_r - epsilon))`: grows where the constraint is broken and shrinks where it holds.

    A loss that is no number is passed on, so that the step is stopped and not hidden by the maximum.

    Args:
        multiplier: lambda >= 0.
        loss: L_r.
        epsilon: its bound.
        learning_rate: eta > 0.

    Source:
        Entesari et al., arXiv 2506.05314.
    """
    updated = multiplier + learning_rate * (loss - epsilon)
    return 0.0 if updated < 0 else updated
