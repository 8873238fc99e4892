"""ALKN: learn the forget set a little more where it does not touch the retain set, then walk the other way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from expunge.losses.alkn import alkn_loss
from expunge.methods.base import Context, Needs, Term
from expunge.methods.terms import ProfiledMethod, stored
from expunge.models.adapters import scale_change
from expunge.models.reference import Reference


class ALKN(ProfiledMethod):
    """`L = TOKEN_MEAN_f(-s(p0_t) log p_t)` under a mask, then `theta = theta_0 - coefficient (theta_ft - theta_0)`.

    Retain rows are read for their gradient only, by the mask this method brings (`wrappers: [alkn]`, whose keys decide
    what is kept); another mask in the recipe takes its place. Made for requests one after the other
    (`data.requests`): each starts from the model the one before it left, which is its only reference, and the masks
    of earlier requests hold later ones back.
    """

    name: ClassVar[str] = "alkn"
    paper: ClassVar[str] = "Wuerkaixi et al., Adaptive Localization of Knowledge Negation, ICML 2025 (PMLR 267)"
    keeps_start: ClassVar[bool] = True

    k: float = Field(default=1.5, gt=0)
    """Steepness of the soft labels in the starting probability (authors: 1.5)."""
    coefficient: float = 1.0
    """How far to walk away from what was memorised (authors: 1); 0 returns the starting model, -1 the memorised one."""

    def needs(self) -> Needs:
        """Forget rows with the starting model's probabilities; retain rows that are loaded but not forwarded."""
        return Needs(references={"forget": (Reference("token_logp"),)}, unscored=("retain",))

    def losses(self, ctx: Context) -> dict[str, Term]:
        """`forget` of a forget micro-batch; nothing of a retain one."""
        if ctx.role != "forget":
            return {}
        values = alkn_loss(ctx.scored.logps, stored(ctx.ref.token_logp, "token_logp", ctx), k=self.k)
        return {"forget": Term(values, unit="token", reduction=self.token_mean)}

    def wrappers(self) -> tuple[Mapping[str, Any], ...]:
        """The mask of the paper, with its defaults."""
        return ({"name": "alkn"},)

    def finish(self, model: Any, start: Mapping[str, Tensor]) -> None:
        """Negate what was learned."""
        scale_change(model, start, -self.coefficient)
