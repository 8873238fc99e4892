"""IAU: one gradient step over everything, up on the forget set and down on the retain set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from expunge.losses.nll import nll_loss
from expunge.methods.base import Context, Method, Needs, Reduction, Term

WHOLE = 2**31 - 1
"""Rows of a batch that means all of them."""


class IAU(Method):
    """`theta' = theta + eta (grad L_f - grad L_r)` in one step of plain SGD; eta is `train.learning_rate`.

    Influence of deleting rows, `(1/n) H^-1 grad`, with the Hessian dropped ("adding the opposite point") and corrected
    by the retain gradient: a baseline. One step does nothing or breaks the model, and no criterion says which rate
    lies between; choose it on a grid. L is over answer tokens, as the likelihood a model is fine-tuned on. Every row
    counts once, unless `data.draw: replacement` says that retain rows are drawn.

    The release takes the first step of a fresh Adam, `eta g / (|g| + eps)`: the sign of each entry, without the
    magnitudes that influence is about. Its training-time penalty on the gradient's norm is of no use to a model that
    is trained already, and not offered.
    """

    name: ClassVar[str] = "iau"
    paper: ClassVar[str] = "Liu et al., Influence Approximation Unlearning, arXiv 2507.23257"
    works_without_retain: ClassVar[bool] = False
    needs_weights: ClassVar[str] = (
        "its one step through adapters, whose first matrices are random and have no gradient yet, would be a random "
        "projection of it"
    )
    train_settings: ClassVar[Mapping[str, Any]] = {
        "max_steps": 1,
        "global_batch_size": WHOLE,
        # Not the same number: roles of one batch size are drawn in pairs, as many rows as the smaller has.
        "retain_batch_size": WHOLE - 1,
        "optim": "sgd",
        "weight_decay": 0.0,
        "max_grad_norm": None,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "warmup_ratio": 0.0,
    }

    reduce: Literal["mean", "sum"] = "mean"
    """`mean`: of each set's answer tokens (the release). `sum`: added up, as the derivation has it; a retain set that
    is many times larger then decides the step, and the rate is per token."""

    def needs(self) -> Needs:
        """Forget and retain rows."""
        return Needs()

    def losses(self, ctx: Context) -> dict[str, Term]:
        """`forget`: log-likelihood, to be lowered; `retain`: negative log-likelihood."""
        reduction: Reduction = "token_mean" if self.reduce == "mean" else "sum"
        sign = -1.0 if ctx.role == "forget" else 1.0
        return {ctx.role: Term(sign * nll_loss(ctx.scored.logps), unit="token", reduction=reduction)}
