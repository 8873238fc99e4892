"""What SimSat and SimImp share: ascent weighted per token, sequence, group, batch, hard choice or annotation.

The two differ in one thing, the weight of a probability.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import AliasChoices, Field, model_validator
from torch import Tensor

from expunge.data.importance import important_tokens, read_annotations
from expunge.errors import UsageError
from expunge.losses.nll import nll_loss
from expunge.losses.reweighting import beyond_quantile, group_means, lowest, weighted_ascent_loss
from expunge.methods.base import Context, Needs, Term
from expunge.methods.grad_ascent import over_kept
from expunge.methods.terms import RetainingMethod
from expunge.methods.workshop import Provision, Workshop

Level = Literal["token", "sequence", "group", "batch", "top_k", "bottom_k", "random"]
_FRACTIONS = {"top_k": 0.15, "bottom_k": 0.5, "random": 0.5}
"""Levels of a hard choice and the authors' fractions."""
_TURN = 0.6180339887498949
"""Share of the circle that draws are turned by from epoch to epoch."""


class ReweightedMethod(RetainingMethod):
    """`L = -gamma REDUCE(sg[w] (-log p)) + alpha L_retain`; weights are never normalised to add up to one."""

    paper: ClassVar[str] = "Yang et al., Exploring Criteria of Loss Reweighting, arXiv 2505.11953"

    level: Level = Field(default="token", validation_alias=AliasChoices("level", "granularity"))
    """The granularity of the weights (a recipe may also write `granularity`). `token`: each its own. `sequence`: of
    the whole answer's probability, for the answer's summed loss. `group`: the mean weight of `group_size` tokens,
    neighbours in the order of weights in an answer. `batch`: the step's mean sequence weight, for all. The others are
    a hard choice, with weights 1 and 0: `top_k` takes the `fraction` of each answer's tokens with the highest loss
    (strictly above that quantile), `bottom_k` those below it, `random` draws them anew in each epoch."""
    group_size: int = Field(default=10, ge=1)
    """Tokens of a group (the authors: 10)."""
    fraction: float | None = Field(default=None, gt=0, le=1)
    """Share of a hard choice: the authors' 0.15 for `top_k`, 0.5 for `bottom_k` (which keeps the rest, 1 - fraction)
    and `random`, unless said."""
    soft: float | None = Field(default=None, ge=0, le=1)
    """Weight of the tokens that `random` or an annotation chooses; the others get 1 - soft. Unless said, a hard
    choice: 1 and 0."""
    annotations: Path | None = None
    """JSON file {row: words} for annotated importance, in place of the forget rows' column `important`."""

    @model_validator(mode="after")
    def _annotated_per_token(self) -> Self:
        if self.annotated and self.level != "token":
            raise UsageError(
                f"annotated importance is a weight per token, not per {self.level}", hint="set method.level=token"
            )
        if self.annotations is not None and not self.annotated:
            raise UsageError(
                "method.annotations names a file that nothing reads", hint="set method.importance=annotated"
            )
        if self.soft is not None and not (self.annotated or self.level == "random"):
            raise UsageError(
                f"method.soft is for annotated importance and level=random, not for level={self.level}",
                hint="leave it out",
            )
        return self

    @property
    @abstractmethod
    def annotated(self) -> bool:
        """Whether importance comes from annotations."""

    @abstractmethod
    def weight(self, logps: Tensor) -> Tensor:
        """Weight of a log-probability, of tokens or of sequences; 1 where only an annotation decides."""

    @property
    def needs_annotations(self) -> bool:
        """Whether the forget rows must be annotated."""
        return self.annotated

    @property
    def prepares(self) -> bool:
        """Whether `prepare` makes something as configured."""
        return self.annotated or self.level == "random"

    def needs(self) -> Needs:
        """As any forget/retain method, and a sum over the step where the loss is divided by one."""
        needs = super().needs()
        if not self.canonical:
            return needs
        if self.level == "batch":
            return replace(needs, totals="scored")
        return replace(needs, totals="reference") if self._hard_annotation else needs

    def prepare(self, workshop: Workshop) -> Provision:
        """Importance of every token, or the draws of `level: random`; refuses what would train on nothing.

        Raises:
            DataError: annotations are missing, broken, or mark no token.
            UsageError: every weight is zero at the starting model.
        """
        dataset = workshop.datasets["forget"]
        lengths = dataset.supervised()
        if self.annotated:
            given = read_annotations(self.annotations) if self.annotations else None
            found = important_tokens(dataset, workshop.template, given)
            marked, rows = int(found.mask.sum()), len(found.without)
            workshop.note(f"{marked} of {len(found.mask)} forget tokens are important, none in {rows} rows")
            return Provision(tables={"forget": {"important": found.mask}})
        if self.level == "random":
            draws = np.random.Generator(np.random.PCG64(workshop.seed)).random(int(lengths.sum()))
            return Provision(tables={"forget": {"draw": draws}})
        if self.level in ("top_k", "bottom_k") and not (lengths > 1).any():
            raise _no_weight(self.level, "answers of one token have none above or below themselves")
        if self.level in ("sequence", "batch") and not self._any_sequence_weight(workshop):
            raise _no_weight(
                self.level, "the starting model's probabilities of whole answers are too close to 0 or 1 for a weight"
            )
        return super().prepare(workshop)

    def totals(self, ctx: Context) -> dict[str, Tensor]:
        """Important forget tokens, or forget sequences and their weights, of the step."""
        if ctx.role != "forget":
            return {}
        if self.annotated:
            return {"important": ctx.ref.own["important"].sum()}
        weights = self.weight(ctx.scored.seq_logps.detach())
        return {"weight": weights.sum(), "rows": torch.tensor(float(ctx.scored.num_rows), device=weights.device)}

    def forget_term(self, ctx: Context) -> Term:
        """Weighted ascent at the chosen level."""
        if self.annotated:
            return self._annotated_term(ctx)
        if self.level in _FRACTIONS:
            return self._chosen_term(ctx)
        scored = ctx.scored
        if self.level in ("sequence", "batch"):
            weights = self.weight(scored.seq_logps.detach())
            if self.level == "batch":
                weights = self._mean_weight(ctx, weights)
            values = weighted_ascent_loss(scored.seq_logps, weights)
            return Term(values, unit="seq", reduction="seq_sum", weight=self.gamma)
        weights = self.weight(scored.logps.detach())
        if self.level == "group":
            weights = group_means(weights, scored.row, scored.num_rows, size=self.group_size)
        values = weighted_ascent_loss(scored.logps, weights)
        return Term(values, unit="token", reduction=self.token_mean, weight=self.gamma)

    def retain_term(self, ctx: Context) -> Term:
        """As everywhere, but with a hard choice a release that sums the forget tokens sums the retain tokens too."""
        if self.canonical or self.level not in _FRACTIONS or self.retain != "nll":
            return super().retain_term(ctx)
        return _summed(nll_loss(ctx.scored.logps), weight=self.alpha)

    def _annotated_term(self, ctx: Context) -> Term:
        important = ctx.ref.own["important"]
        logps = ctx.scored.logps
        weights = self.weight(logps.detach())
        if self.soft is None:
            total = ctx.totals.get("important")
            return over_kept(weighted_ascent_loss(logps, weights), important, total, weight=self.gamma)
        soft = _split(important, self.soft).to(weights.dtype)
        values = weighted_ascent_loss(logps, weights * soft)
        if self.canonical:
            return Term(values, unit="token", reduction="token_mean", weight=self.gamma)
        return _summed(values, weight=self.gamma)

    def _chosen_term(self, ctx: Context) -> Term:
        scored = ctx.scored
        chosen = self._chosen(ctx).to(scored.logps.dtype)
        weights = chosen if self.soft is None else _split(chosen, self.soft)
        values = weighted_ascent_loss(scored.logps, weights)
        if self.canonical:
            return Term(values, unit="token", reduction="token_mean", weight=self.gamma)
        return _summed(values, weight=self.gamma)

    def _chosen(self, ctx: Context) -> Tensor:
        """(N,) bool, what a hard choice takes."""
        scored, share = ctx.scored, self.fraction or _FRACTIONS[self.level]
        if self.level == "random":
            # Turning the circle keeps the draws uniform, different in each epoch, and the same after a resume.
            draws = (ctx.ref.own["draw"] + ctx.epoch * _TURN) % 1.0
            return lowest(draws, scored.row, scored.num_rows, fraction=share)
        losses = -scored.logps.detach()
        above = self.level == "top_k"
        return beyond_quantile(losses, scored.row, scored.num_rows, quantile=1 - share, above=above)

    def _mean_weight(self, ctx: Context, weights: Tensor) -> Tensor:
        """The mean over the step; over the micro-batch where a release is followed."""
        if self.canonical:
            mean = ctx.totals["weight"] / max(ctx.totals["rows"], 1.0)
            return torch.full_like(weights, mean)
        return weights.mean().expand_as(weights) if len(weights) else weights

    def _any_sequence_weight(self, workshop: Workshop) -> bool:
        passes = workshop.passes(workshop.datasets["forget"])
        return any(bool(self.weight(scored.seq_logps).any()) for _, scored in passes)

    @property
    def _hard_annotation(self) -> bool:
        return self.annotated and self.soft is None


def _split(chosen: Tensor, soft: float) -> Tensor:
    """`soft` where chosen, `1 - soft` elsewhere."""
    return chosen * soft + (1 - chosen) * (1 - soft)


def _summed(values: Tensor, *, weight: float) -> Term:
    """The sum inside a micro-batch, averaged over these: what a release that sums trains on under accumulation."""
    return Term(values * len(values), unit="token", reduction="micro_token_mean", weight=weight)


def _no_weight(level: str, why: str) -> UsageError:
    return UsageError(
        f"every weight is zero with level={level}: {why}", hint="set method.level=token, or a smaller method.beta"
    )
