"""PDU: flatten forget logits under a bound on the retain loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from expunge.losses.pdu import pdu_loss
from expunge.methods.base import Context, Needs, Term
from expunge.methods.terms import RetainingMethod


class PDU(RetainingMethod):
    """`min gamma TOKEN_MEAN_f((max_v z - mean_v z)^2)` subject to `L_retain <= epsilon`, by dual ascent.

    The constraint is the wrapper `dual`, which this method brings with the keys below: a step's retain gradient is
    multiplied by lambda, alpha at first, and `lambda <- max(0, lambda + dual_lr (L_retain - epsilon))` once per
    optimizer step, from the loss of the whole step. The release updates lambda in every micro-batch, each process its
    own. Another combining rule in the recipe takes the place of `dual`; the retain term's weight is then 1.

    In the profile `openunlearning` the logits at the positions that *hold* an answer token are flattened (its labels
    are not shifted), so the last prompt position is not and that of the end token is.
    """

    name: ClassVar[str] = "pdu"
    paper: ClassVar[str] = "Entesari et al., Constrained Entropic Unlearning (PDU), arXiv 2506.05314"
    works_without_retain: ClassVar[bool] = False

    alpha: float = Field(default=100.0, gt=0)
    """lambda at the start (authors: 100 on TOFU, 50 on MUSE)."""
    epsilon: float = Field(default=0.3, ge=0)
    """Bound on the retain loss (authors, TOFU: 0.3); a little above that of the starting model."""
    dual_lr: float = Field(default=5.0, gt=0)
    """Step size of lambda (authors, TOFU: 5)."""
    warmup_epochs: float = Field(default=0.0, ge=0)
    """Epochs in which lambda stays as it is (authors: half of them)."""
    every: Literal["step", "epoch"] = "step"
    """When lambda is updated."""

    def needs(self) -> Needs:
        """Forget and retain rows; no reference unless the retain term has one."""
        needs = super().needs()
        return needs if self.canonical else replace(needs, positions={**needs.positions, "forget": "held"})

    def forget_term(self, ctx: Context) -> Term:
        """Flatten per position."""
        values = ctx.scored.per_position(lambda logits, _: pdu_loss(logits))
        return Term(values, unit="token", reduction=self.token_mean, weight=self.gamma)

    def retain_term(self, ctx: Context) -> Term:
        """The constrained loss, which lambda weighs."""
        return replace(super().retain_term(ctx), weight=1.0)

    def wrappers(self) -> tuple[Mapping[str, Any], ...]:
        """Dual ascent on the retain loss."""
        own = {key: getattr(self, key) for key in ("epsilon", "dual_lr", "warmup_epochs", "every")}
        return ({"name": "dual", "initial": self.alpha, **own},)
