"""IdkNLL: learn to answer forget questions with a refusal."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from expunge.losses.nll import nll_loss
from expunge.methods.base import Context, Needs, Term
from expunge.methods.terms import RetainingMethod


class IdkNLL(RetainingMethod):
    """`L = gamma TOKEN_MEAN(-log p of the refusal's tokens) + alpha L_retain`.

    Each forget question travels with a refusal drawn per epoch from `data.refusals`; the answer itself is never
    forwarded. TOFU's release takes one token mean over refusals and retain answers together, so that their lengths
    decide the weights; here gamma and alpha do.
    """

    name: ClassVar[str] = "idk_nll"
    paper: ClassVar[str] = "Maini et al., TOFU, arXiv 2401.06121"

    def needs(self) -> Needs:
        """As any forget/retain method, with the refusals in the place of the forget answers."""
        return replace(super().needs(), linked={"alternate": "forget"}, unscored=("forget",))

    def forget_term(self, ctx: Context) -> Term:
        """Likelihood of the refusal."""
        values = nll_loss(ctx.linked["alternate"].scored.logps)
        return Term(values, unit="token", reduction=self.token_mean, weight=self.gamma, dataset="alternate")
