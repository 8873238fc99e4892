"""SimSat: gradient ascent weighted by saturation alone."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from expunge.losses.satimp import satimp_weight
from expunge.methods.reweighting import ReweightedMethod


class SimSat(ReweightedMethod):
    """`L = -gamma REDUCE_f(sg[p^beta] (-log p)) + alpha L_retain`: what is forgotten already is pushed no further.

    Per token this is WGA. Of whole answers p is a product: it underflows on long ones, and then hardly anything moves.
    """

    name: ClassVar[str] = "simsat"

    beta: float = Field(default=1.0, ge=0)
    """Saturation exponent (authors: 5 where they read it, 1 in their plain ascent variant; OpenUnlearning's WGA: 1); 0
    is gradient ascent. Not read by a hard choice."""
    importance: Literal["none", "annotated"] = "none"
    """`annotated`: only tokens marked as important are pushed (or more than others, with `soft`)."""

    @property
    def annotated(self) -> bool:
        """Whether importance comes from annotations."""
        return self.importance == "annotated"

    def weight(self, logps: Tensor) -> Tensor:
        """`p^beta`."""
        return satimp_weight(logps, beta1=self.beta, beta2=0)
