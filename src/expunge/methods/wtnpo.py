"""WTNPO: token-wise negative preference optimisation weighted by token probability."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from expunge.losses.wtnpo import wtnpo_loss
from expunge.methods.base import Context, Term
from expunge.methods.terms import stored
from expunge.methods.tnpo import TokenReferenceMethod


class WTNPO(TokenReferenceMethod):
    """`L = -gamma TOKEN_MEAN_f(sg[2 p_t^(beta + exponent) / (p_t^beta + r_t^beta)] (-log p_t)) + alpha L_retain`."""

    name: ClassVar[str] = "wtnpo"
    paper: ClassVar[str] = "Wang et al., Rethinking LLM Unlearning Objectives, arXiv 2502.19301"

    exponent: float = Field(default=1.5, ge=0)
    """Of the probability in the weight (the authors' alpha: 1.5); 0 is TNPO."""

    def forget_term(self, ctx: Context) -> Term:
        """Weighted ascent per token."""
        ref_logps = stored(ctx.ref.token_logp, "token_logp", ctx)
        values = wtnpo_loss(ctx.scored.logps, ref_logps, beta=self.beta, exponent=self.exponent, eps=self.eps)
        return Term(values, unit="token", reduction=self.token_mean, weight=self.gamma)
