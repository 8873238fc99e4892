"""BS-T: gradient ascent on a label that holds the model's own beliefs beside the answer token."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from pydantic import Field

from expunge.losses.bst import bst_loss
from expunge.methods.base import Context, Reduction, Term
from expunge.methods.terms import RetainingMethod


class BST(RetainingMethod):
    """`L = gamma mean_b sum_t <t_t, log q_t> + alpha L_retain`, t_t = lambda_t q~_t + (1 - lambda_t) e_y.

    q~ is the model's own distribution on its k likeliest tokens, a constant to the gradient. `profile: openunlearning`
    takes the mean over each answer in place of the sum, as the only port to OpenUnlearning does.
    """

    name: ClassVar[str] = "bs_t"
    paper: ClassVar[str] = "Li et al., LLM Unlearning with LLM Beliefs, arXiv 2510.19422"

    lambda_t: float = Field(default=0.2, ge=0, le=1)
    """Share of the beliefs in the label (the paper's best on TOFU: 0.2; the port: 0.5); 0 is gradient ascent."""
    k: int = Field(default=20, ge=1)
    """Likeliest tokens a belief is made of (the port: 20)."""

    def forget_term(self, ctx: Context) -> Term:
        """Soft-label ascent per token."""
        values = ctx.scored.per_position(partial(bst_loss, share=self.lambda_t, k=self.k))
        reduction: Reduction = "seq_sum" if self.canonical else "seq_mean"
        return Term(values, unit="token", reduction=reduction, weight=self.gamma)
