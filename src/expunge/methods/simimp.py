"""SimImp: gradient ascent weighted by importance alone, read off the probabilities or annotated."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from expunge.losses.satimp import satimp_weight
from expunge.methods.reweighting import ReweightedMethod


class SimImp(ReweightedMethod):
    """`L = -gamma REDUCE_f(sg[(1 - p)^beta] (-log p)) + alpha L_retain`: what is not yet certain is pushed.

    The weight grows as p falls, so it collapses like gradient ascent; a certain token (p = 1) never starts moving.
    """

    name: ClassVar[str] = "simimp"

    beta: float = Field(default=0.1, ge=0)
    """Importance exponent; 0 is gradient ascent. The authors' SimImp takes 5, which leaves a memorised token (p = .99)
    1e-10 of its weight; ours is the exponent of their SatImp. Not read by a hard choice or annotations."""
    importance: Literal["likelihood", "annotated"] = "likelihood"
    """Where importance comes from: 1 - p, or tokens marked as important (`(1 - p)^beta` is then not read)."""

    @property
    def annotated(self) -> bool:
        """Whether importance comes from annotations."""
        return self.importance == "annotated"

    def weight(self, logps: Tensor) -> Tensor:
        """`(1 - p)^beta`; 1 where annotations say what is important."""
        if self.annotated:
            return torch.ones_like(logps)
        return satimp_weight(logps, beta1=0, beta2=self.beta)
