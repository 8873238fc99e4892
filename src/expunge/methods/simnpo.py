"""SimNPO: length-normalised NPO without a reference model."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from expunge.losses.simnpo import simnpo_loss
from expunge.methods.base import Context, Term
from expunge.methods.terms import RetainingMethod


class SimNPO(RetainingMethod):
    """`L = -gamma mean_b (2 / beta) log sigmoid(beta (mean_t(-log p_t) - delta)) + alpha L_retain`."""

    name: ClassVar[str] = "simnpo"
    paper: ClassVar[str] = "Fan et al., Simplicity Prevails, arXiv 2410.07163"
    granularity: ClassVar[str] = "sequence"

    gamma: float = Field(default=0.125, ge=0)
    """Weight of the forget term (authors' code, TOFU forget10: 0.125; forget05: 0.1375)."""
    beta: float = Field(default=4.5, gt=0)
    """Inverse temperature (authors' code, TOFU forget10: 4.5; forget05: 2.5)."""
    delta: float = 0.0
    """Reward margin in nats per token, inside the beta bracket (authors' code: 0, named gamma there)."""

    def forget_term(self, ctx: Context) -> Term:
        """SimNPO per sequence, on the mean of its token log-probabilities."""
        scored = ctx.scored
        values = simnpo_loss(scored.seq_logps, scored.seq_lengths, beta=self.beta, delta=self.delta)
        return Term(values, unit="seq", reduction="seq_mean", weight=self.gamma)
