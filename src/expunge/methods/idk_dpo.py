"""IdkDPO: prefer a refusal to the forgotten answer."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from expunge.losses.dpo import dpo_loss
from expunge.methods.base import Context, Needs, Term
from expunge.methods.terms import RetainingMethod, stored
from expunge.models.reference import Reference


class IdkDPO(RetainingMethod):
    """`L = -gamma mean_b (2 / beta) log sigmoid(beta (D_refusal - D_forget)) + alpha L_retain`, D = S - S_o.

    With a generated alternative answer in place of the refusal this is AltPO's loss.
    """

    name: ClassVar[str] = "idk_dpo"
    paper: ClassVar[str] = "Maini et al., TOFU, arXiv 2401.06121"
    granularity: ClassVar[str] = "sequence"
    forget_references: ClassVar[tuple[Reference, ...]] = (Reference("seq_logp"),)

    beta: float = Field(default=0.1, gt=0)
    """Inverse temperature (OpenUnlearning: 0.1)."""

    def needs(self) -> Needs:
        """As any forget/retain method, plus the refusals that travel with the forget rows."""
        needs = super().needs()
        references = {**needs.references, "alternate": self.forget_references}
        return replace(needs, linked={"alternate": "forget"}, references=references)

    def forget_term(self, ctx: Context) -> Term:
        """DPO per pair, on the sums of token log-probabilities."""
        refusal = ctx.linked["alternate"]
        values = dpo_loss(
            refusal.scored.seq_logps,
            ctx.scored.seq_logps,
            ref_win_logps=stored(refusal.ref.seq_logp, "seq_logp", refusal),
            ref_lose_logps=stored(ctx.ref.seq_logp, "seq_logp", ctx),
            beta=self.beta,
        )
        return Term(values, unit="seq", reduction="seq_sum", weight=self.gamma)
