"""UNDIAL: self-distillation with adjusted logits."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from expunge.errors import UsageError
from expunge.losses.undial import undial_loss
from expunge.methods.base import Context, Needs, Term
from expunge.methods.terms import RetainingMethod, stored
from expunge.models.reference import Reference
from expunge.models.score import Scored

UNMASKED = -100
"""The label of a token that is not supervised, which the published release uses as an index."""


class UNDIAL(RetainingMethod):
    """`L = gamma TOKEN_MEAN_f(CE(softmax(z_o - beta e_y), softmax(z))) + alpha L_retain`.

    In the profile `openunlearning` the mean runs over every position but each row's last, and where a position predicts
    no answer token the vocabulary's entry V - 100 is lowered instead: the release masks nothing and indexes with its
    label -100. That depends on padding, so a run refuses it; it exists to compare numbers.
    """

    name: ClassVar[str] = "undial"
    paper: ClassVar[str] = "Dong et al., UNDIAL, arXiv 2402.10052"
    forget_references: ClassVar[tuple[Reference, ...]] = (Reference("hidden"),)

    alpha: float = Field(default=0.0, ge=0)
    """Weight of the retain term (paper and OpenUnlearning: none)."""
    beta: float = Field(default=10.0, ge=0)
    """How far the target's logit is lowered in the teacher (OpenUnlearning: 10; authors' commands: 3)."""

    def needs(self) -> Needs:
        """The starting model's distribution at the forget answers."""
        needs = super().needs()
        return needs if self.canonical else replace(needs, positions={**needs.positions, "forget": "all"})

    def forget_term(self, ctx: Context) -> Term:
        """Distillation per token."""
        scored, teacher = ctx.scored, stored(ctx.ref.distribution, "hidden", ctx)
        if self.canonical:
            values = scored.per_position(self._distilled, teacher, scored.targets)
            return Term(values, unit="token", reduction=self.token_mean, weight=self.gamma)
        last = scored.row != scored.row.roll(-1)
        last[-1:] = True
        values = scored.per_position(self._distilled, teacher, self._unmasked(scored, last)) * ~last
        values = values * (len(values) / max(int((~last).sum()), 1))
        return Term(values, unit="token", reduction=self.token_mean, weight=self.gamma)

    def _distilled(self, logits: Tensor, targets: Tensor, teacher: Tensor, lowered: Tensor) -> Tensor:
        return undial_loss(logits, teacher, lowered, beta=self.beta)

    def _unmasked(self, scored: Scored, last: Tensor) -> Tensor:
        """What the release lowers at each position; each row's last one, which takes no part, lowers entry 0."""
        answer = torch.ones_like(last) if scored.answer is None else scored.answer
        vocab = scored.vocab
        if vocab < -UNMASKED and bool((~answer & ~last).any()):
            raise UsageError(
                f"the published UNDIAL indexes a vocabulary of {vocab} tokens with its label {UNMASKED}",
                hint="use profile=canonical",
            )
        return torch.where(answer, scored.targets, vocab + UNMASKED).masked_fill(last & ~answer, 0)
