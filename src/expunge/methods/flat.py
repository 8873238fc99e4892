"""FLAT: loss adjustment with forget data only."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from expunge.losses.flat import Divergence, flat_loss
from expunge.losses.segment import segment_mean
from expunge.methods.base import Context, Needs, Term
from expunge.methods.terms import RetainingMethod


class FLAT(RetainingMethod):
    """`L = gamma mean_b(-g*(P_e) + f*(g*(P_f))) + alpha L_retain`, P the mean token probability of an answer.

    P_e is that of a template answer (a refusal from `data.refusals`), P_f that of the answer to forget. Not reproduced,
    because it makes the step size depend on padding: the release divides by the padded length, and applies g* and f*
    to the mean over the batch.
    """

    name: ClassVar[str] = "flat"
    paper: ClassVar[str] = "Wang et al., FLAT, arXiv 2410.11143"
    granularity: ClassVar[str] = "sequence"

    alpha: float = Field(default=0.0, ge=0)
    """Weight of the retain term (paper: none)."""
    divergence: Divergence = "tv"
    """f-divergence: total variation (authors), `kl`, `js` or `pearson`."""

    def needs(self) -> Needs:
        """As any forget/retain method, plus the template answers that travel with the forget rows."""
        return replace(super().needs(), linked={"alternate": "forget"})

    def forget_term(self, ctx: Context) -> Term:
        """One value per pair of answers."""
        template, forget = (
            segment_mean(each.scored.logps.exp(), each.scored.row, each.scored.num_rows)
            for each in (ctx.linked["alternate"], ctx)
        )
        values = flat_loss(template, forget, divergence=self.divergence)
        return Term(values, unit="seq", reduction="seq_mean", weight=self.gamma)
