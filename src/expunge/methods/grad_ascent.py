"""GradAscent: ascend the loss of the forget set, nothing else."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from expunge.losses.grad_ascent import grad_ascent_loss, tempered_logps
from expunge.losses.reweighting import kept_count, lowest
from expunge.methods.base import Context, Needs, Term
from expunge.methods.terms import ProfiledMethod
from expunge.methods.workshop import Provision, Workshop

_KEPT = "kept"


class AscendingMethod(ProfiledMethod):
    """What every method with a plain ascent term shares: two ways to make it milder."""

    temperature: float = Field(default=1.0, gt=0)
    """Logits of the ascent are divided by it (UWC's `ga_temp`: 2); 1 is plain ascent."""
    lowest_loss_fraction: float | None = Field(default=None, gt=0, le=1)
    """Ascend only on this share of each answer's tokens, those the model finds likeliest, and average over them (UWC's
    `ga_LS`: 0.8); at least one token of each. Unless said: on all."""

    def ascent_term(self, ctx: Context, *, weight: float) -> Term:
        """`-TOKEN_MEAN(-log p)` over the forget tokens that are kept."""
        scored = ctx.scored
        logps = (
            scored.logps
            if self.temperature == 1
            else scored.per_position(partial(tempered_logps, temperature=self.temperature))
        )
        values = grad_ascent_loss(logps)
        if self.lowest_loss_fraction is None:
            return Term(values, unit="token", reduction=self.token_mean, weight=weight)
        kept = lowest(-logps.detach(), scored.row, scored.num_rows, fraction=self.lowest_loss_fraction)
        return over_kept(values, kept, ctx.totals.get(_KEPT), weight=weight)

    def counting(self, needs: Needs) -> Needs:
        """`needs`, and the step's number of kept tokens where only some are."""
        return replace(needs, totals="reference") if self._counts else needs

    def prepare(self, workshop: Workshop) -> Provision:
        """How many tokens of each answer are kept, spread over its positions, where only some are."""
        if not self._counts or self.lowest_loss_fraction is None:
            return super().prepare(workshop)
        lengths = workshop.datasets["forget"].supervised()
        kept = kept_count(torch.from_numpy(lengths), fraction=self.lowest_loss_fraction).numpy()
        return Provision(tables={"forget": {_KEPT: np.repeat(kept / np.maximum(lengths, 1), lengths)}})

    def totals(self, ctx: Context) -> dict[str, Tensor]:
        """`kept`: forget tokens of the step that are ascended on."""
        return {_KEPT: ctx.ref.own[_KEPT].sum()} if ctx.role == "forget" else {}

    @property
    def prepares(self) -> bool:
        """Whether `prepare` makes something as configured."""
        return self._counts

    @property
    def _counts(self) -> bool:
        return self.lowest_loss_fraction is not None and self.canonical


def over_kept(values: Tensor, kept: Tensor, total: float | None, *, weight: float) -> Term:
    """The mean of the values that are kept.

    Args:
        values: (N,) per token.
        kept: (N,) 0 or 1.
        total: how many are kept in the whole step; None takes the mean inside the micro-batch, as releases do.
        weight: of the term.
    """
    chosen = values * kept.to(values.dtype)
    if total is not None:
        return Term(chosen / max(total, 1.0), unit="token", reduction="sum", weight=weight)
    # (sum / N) / m with N times the sum over those kept is their mean inside the micro-batch, averaged over these.
    mean = chosen * (len(values) / kept.sum().clamp(min=1).to(values.dtype))
    return Term(mean, unit="token", reduction="micro_token_mean", weight=weight)


class GradAscent(AscendingMethod):
    """`L = -TOKEN_MEAN(-log p_t)` over the forget answers. Needs no retain data; collapses if run for long."""

    name: ClassVar[str] = "grad_ascent"
    paper: ClassVar[str] = "Maini et al., TOFU, arXiv 2401.06121"
    works_without_retain: ClassVar[bool] = True

    def needs(self) -> Needs:
        """Forget rows only."""
        return self.counting(Needs(roles=("forget",)))

    def losses(self, ctx: Context) -> dict[str, Term]:
        """`forget`."""
        return {"forget": self.ascent_term(ctx, weight=1.0)}
