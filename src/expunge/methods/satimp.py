"""SatImp: gradient ascent weighted by saturation and importance."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from expunge.losses.satimp import satimp_loss
from expunge.methods.base import Context, Term
from expunge.methods.terms import RetainingMethod


class SatImp(RetainingMethod):
    """`L = -gamma TOKEN_MEAN_f(sg[p_t^beta1 (1 - p_t)^beta2] (-log p_t)) + alpha L_retain`."""

    name: ClassVar[str] = "satimp"
    paper: ClassVar[str] = "Yang et al., Exploring Criteria of Loss Reweighting, arXiv 2505.11953"

    alpha: float = Field(default=0.1, ge=0)
    """Weight of the retain term (authors' latest code: 0.1); 0 runs without retain data."""
    beta1: float = Field(default=4.0, ge=0)
    """Saturation exponent (authors' latest code: 4; their README: 5)."""
    beta2: float = Field(default=0.1, ge=0)
    """Importance exponent (authors: 0.1; OpenUnlearning: 1, which hardly moves memorised tokens)."""

    def forget_term(self, ctx: Context) -> Term:
        """Weighted ascent per token."""
        values = satimp_loss(ctx.scored.logps, beta1=self.beta1, beta2=self.beta2)
        return Term(values, unit="token", reduction=self.token_mean, weight=self.gamma)
