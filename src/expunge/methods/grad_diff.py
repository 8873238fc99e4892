"""GradDiff: ascend on forget, descend on retain (NLL), or stay close to the starting model there (KL)."""

from __future__ import annotations

from typing import ClassVar

from expunge.methods.base import Context, Needs, Term
from expunge.methods.grad_ascent import AscendingMethod
from expunge.methods.terms import RetainingMethod


class GradDiff(AscendingMethod, RetainingMethod):
    """`L = -gamma TOKEN_MEAN_f(-log p_t) + alpha L_retain`; with `retain: kl` it is TOFU's KL minimisation."""

    name: ClassVar[str] = "grad_diff"
    paper: ClassVar[str] = "Liu et al., Continual Learning and Private Unlearning, arXiv 2203.12817"

    def needs(self) -> Needs:
        """As any forget/retain method."""
        return self.counting(super().needs())

    def forget_term(self, ctx: Context) -> Term:
        """Gradient ascent per token."""
        return self.ascent_term(ctx, weight=self.gamma)
