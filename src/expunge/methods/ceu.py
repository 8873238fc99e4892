"""CE-U: cross-entropy unlearning."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from expunge.errors import UsageError
from expunge.losses.ceu import ceu_loss
from expunge.methods.base import Context, Needs, Term
from expunge.methods.terms import RetainingMethod
from expunge.methods.workshop import Provision, Workshop


class CEU(RetainingMethod):
    """`L = gamma TOKEN_MEAN_f(CE(softmax(z, z_y at -inf), softmax(z))) + alpha L_retain`, the label detached.

    Bounded in the token's probability, so it does not collapse at once; published without a retain term.
    """

    name: ClassVar[str] = "ceu"
    paper: ClassVar[str] = "Yang, CE-U: Cross Entropy Unlearning, arXiv 2503.01224"

    alpha: float = Field(default=0.0, ge=0)
    """Weight of the retain term (paper: none)."""
    skip_first: int = Field(default=1, ge=0)
    """Answer tokens at the start of each row that are left alone (OpenUnlearning: 1)."""

    def needs(self) -> Needs:
        """Forget rows from their second answer token on."""
        return replace(super().needs(), skip_first={"forget": self.skip_first} if self.skip_first else {})

    @property
    def prepares(self) -> bool:
        """`prepare` only looks at the rows."""
        return False

    def prepare(self, workshop: Workshop) -> Provision:
        """Nothing; says how many rows have no token left.

        Raises:
            UsageError: no row has.
        """
        lengths = workshop.datasets["forget"].supervised()
        if not (lengths > self.skip_first).any():
            raise UsageError(
                f"skip_first={self.skip_first} leaves no token of any forget row: "
                f"the longest answer has {lengths.max(initial=0)}",
                hint="lower method.skip_first",
            )
        if count := int((lengths <= self.skip_first).sum()):
            workshop.note(f"{count} forget rows have no token after the first {self.skip_first} and take no part")
        return Provision()

    def forget_term(self, ctx: Context) -> Term:
        """Cross-entropy to the distribution without the token."""
        values = ctx.scored.per_position(ceu_loss)
        return Term(values, unit="token", reduction=self.token_mean, weight=self.gamma)
