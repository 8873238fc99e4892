"""NPO: negative preference optimisation against the starting model."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from expunge.losses.npo import npo_loss
from expunge.methods.base import Context, Term
from expunge.methods.terms import RetainingMethod, stored
from expunge.models.reference import Reference


class NPO(RetainingMethod):
    """`L = gamma mean_b (2 / beta) log(1 + (p_b / p_o,b)^beta) + alpha L_retain` on whole sequences."""

    name: ClassVar[str] = "npo"
    paper: ClassVar[str] = "Zhang et al., Negative Preference Optimization, arXiv 2404.05868"
    granularity: ClassVar[str] = "sequence"
    forget_references: ClassVar[tuple[Reference, ...]] = (Reference("seq_logp"),)

    beta: float = Field(default=0.1, gt=0)
    """Inverse temperature (the authors' code and OpenUnlearning: 0.1); smaller is closer to gradient ascent."""

    def forget_term(self, ctx: Context) -> Term:
        """NPO per sequence, on the sum of its token log-probabilities."""
        ref_logps = stored(ctx.ref.seq_logp, "seq_logp", ctx)
        values = npo_loss(ctx.scored.seq_logps, ref_logps, beta=self.beta)
        return Term(values, unit="seq", reduction="seq_sum", weight=self.gamma)
