"""GradDiff: ascend on forget, descend on retain (NLL), or stay close to the starting model there (KL)."""

from __future__ import annotations

from typing import ClassVar

from expunge.losses.grad_ascent import grad_ascent_loss
from expunge.methods.base import Context, Term
from expunge.methods.terms import RetainingMethod


class GradDiff(RetainingMethod):
    """`L = -gamma TOKEN_MEAN_f(-log p_t) + alpha L_retain`; with `retain: kl` it is TOFU's KL minimisation."""

    name: ClassVar[str] = "grad_diff"
    paper: ClassVar[str] = "Liu et al., Continual Learning and Private Unlearning, arXiv 2203.12817"

    def forget_term(self, ctx: Context) -> Term:
        """Gradient ascent per token."""
        values = grad_ascent_loss(ctx.scored.logps)
        return Term(values, unit="token", reduction=self.token_mean, weight=self.gamma)
