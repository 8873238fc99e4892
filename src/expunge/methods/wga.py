"""WGA: gradient ascent weighted by token probability."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from expunge.losses.wga import wga_loss
from expunge.methods.base import Context, Term
from expunge.methods.terms import RetainingMethod


class WGA(RetainingMethod):
    """`L = -gamma TOKEN_MEAN_f(sg[p_t^beta] (-log p_t)) + alpha L_retain`."""

    name: ClassVar[str] = "wga"
    paper: ClassVar[str] = "Wang et al., Rethinking LLM Unlearning Objectives, arXiv 2502.19301"

    beta: float = Field(default=1.0, ge=0)
    """Exponent of the weight (OpenUnlearning: 1; the authors' code falls back to 5); 0 is GradDiff."""

    def forget_term(self, ctx: Context) -> Term:
        """Weighted ascent per token."""
        values = wga_loss(ctx.scored.logps, beta=self.beta)
        return Term(values, unit="token", reduction=self.token_mean, weight=self.gamma)
