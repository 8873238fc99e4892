"""TNPO: token-wise negative preference optimisation."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from expunge.losses.tnpo import PUBLISHED_EPS, tnpo_loss
from expunge.methods.base import Context, Term
from expunge.methods.terms import RetainingMethod, stored
from expunge.models.reference import Reference


class TokenReferenceMethod(RetainingMethod):
    """A forget term weighted by each token's probability now and in the starting model."""

    forget_references: ClassVar[tuple[Reference, ...]] = (Reference("token_logp"),)

    beta: float = Field(default=4.0, gt=0)
    """Inverse temperature (the authors' code: 4)."""

    @property
    def eps(self) -> float:
        """Of the weight's denominator: none (ours), or the authors' 1e-5 in the published profile."""
        return 0.0 if self.profile == "canonical" else PUBLISHED_EPS


class TNPO(TokenReferenceMethod):
    """`L = -gamma TOKEN_MEAN_f(sg[2 p_t^beta / (p_t^beta + r_t^beta)] (-log p_t)) + alpha L_retain`."""

    name: ClassVar[str] = "tnpo"
    paper: ClassVar[str] = "Wang et al., Rethinking LLM Unlearning Objectives, arXiv 2502.19301"

    def forget_term(self, ctx: Context) -> Term:
        """Weighted ascent per token."""
        ref_logps = stored(ctx.ref.token_logp, "token_logp", ctx)
        values = tnpo_loss(ctx.scored.logps, ref_logps, beta=self.beta, eps=self.eps)
        return Term(values, unit="token", reduction=self.token_mean, weight=self.gamma)
