"""GradAscent: ascend the loss of the forget set, nothing else."""

from __future__ import annotations

from typing import ClassVar

from expunge.losses.grad_ascent import grad_ascent_loss
from expunge.methods.base import Context, Needs, Term
from expunge.methods.terms import ProfiledMethod


class GradAscent(ProfiledMethod):
    """`L = -TOKEN_MEAN(-log p_t)` over the forget answers. Needs no retain data; collapses if run for long."""

    name: ClassVar[str] = "grad_ascent"
    paper: ClassVar[str] = "Maini et al., TOFU, arXiv 2401.06121"
    works_without_retain: ClassVar[bool] = True

    def needs(self) -> Needs:
        """Forget rows only."""
        return Needs(roles=("forget",))

    def losses(self, ctx: Context) -> dict[str, Term]:
        """`forget`."""
        values = grad_ascent_loss(ctx.scored.logps)
        return {"forget": Term(values, unit="token", reduction=self.token_mean)}
