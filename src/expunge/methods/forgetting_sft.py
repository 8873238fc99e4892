"""Fine-tuning that forgets: learn the tokens a trusted reference learned from, unlearn the others under a ramp."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from expunge.data.encode import Dataset
from expunge.losses.token_quality import forgetting_loss, positive_tokens, ramp, token_quality
from expunge.methods.base import Context, Method, Needs, Term
from expunge.methods.generate import derived_seed
from expunge.methods.workshop import Provision, Workshop

POSITIVE = "forgetting_positive"


class ForgettingSFT(Method):
    """`L = mean_pos(-log p_t) - lambda(s) mean_neg(-log p_t)`, the positive tokens those of the highest quality.

    Quality `Q_t = ce_start,t - ce_reference,t` says how much a reference, fine-tuned on a trusted subset, improved a
    token; the best `rho` of all answer tokens are positive, the others negative, and
    `lambda(s) = (t_max - t_min) s / S` at step s of S. Both means are over the whole optimizer step.

    Published as fine-tuning on one data set. Here (RECONSTRUCTED) the data set is the union of the forget and the
    retain rows, and the trusted subset is drawn from the retain rows: what training on those does not improve is
    unlearned, which are mostly forget tokens. Forget tokens that the reference improves nevertheless are learned.
    """

    name: ClassVar[str] = "forgetting_sft"
    paper: ClassVar[str] = "Taheri et al., Forgetting: A New Mechanism Towards Better LLM Fine-tuning, arXiv 2508.04329"
    experimental: ClassVar[bool] = True

    rho: float = Field(default=0.7, ge=0, le=1)
    """Share of all answer tokens that is learned (authors: 0.7); 1 is plain fine-tuning."""
    t_max: float = Field(default=0.25, ge=0)
    """Weight of the negative tokens at the end, but for `t_min` (authors: 0.25)."""
    t_min: float = Field(default=1e-5, ge=0)
    """Taken off `t_max` (authors: 1e-5; their ramp starts at 0 all the same)."""
    reference_share: float = Field(default=1.0, gt=0, le=1)
    """Share of the retain rows the reference is trained on (authors: 10,000 of 50,000 rows)."""
    reference_learning_rate: float = Field(default=1e-4, gt=0)
    """AdamW's, for the reference (authors: 1e-4, LoRA); a tiny model needs what it was trained with."""
    reference_epochs: float = Field(default=1, gt=0)
    """Passes over its rows (authors: 1)."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.t_min > self.t_max:
            raise ValueError("t_min must not be above t_max: the ramp would learn what is to be unlearned")
        return self

    def needs(self) -> Needs:
        """Both sets, and how many positive and negative tokens a step has."""
        return Needs(totals="reference")

    def totals(self, ctx: Context) -> dict[str, Tensor]:
        """`positive` and `negative` tokens."""
        positive = ctx.ref.own[POSITIVE]
        return {"positive": positive.sum(), "negative": (~positive).sum()}

    def losses(self, ctx: Context) -> dict[str, Term]:
        """`forget` and `retain`: each one's share of both means."""
        values = forgetting_loss(
            ctx.scored.logps,
            ctx.ref.own[POSITIVE],
            num_positive=ctx.totals["positive"],
            num_negative=ctx.totals["negative"],
            weight=ramp(ctx.progress, t_min=self.t_min, t_max=self.t_max),
        )
        return {ctx.role: Term(values, unit="token", reduction="sum")}

    def prepare(self, workshop: Workshop) -> Provision:
        """Train the reference and part the tokens of both sets."""
        roles = self.needs().roles
        subset = self._subset(workshop)
        workshop.note(f"forgetting_sft: a reference is trained on {len(subset.encoded)} retain rows")
        reference = workshop.fine_tuned(
            subset, learning_rate=self.reference_learning_rate, epochs=self.reference_epochs
        )
        quality = [token_quality(_logps(workshop, role, None), _logps(workshop, role, reference)) for role in roles]
        positive = positive_tokens(np.concatenate(quality), rho=self.rho)
        parts = np.split(positive, np.cumsum([len(part) for part in quality])[:-1])
        negative = ", ".join(
            f"{(~part).sum()} of {len(part)} {role} tokens" for role, part in zip(roles, parts, strict=True)
        )
        workshop.note(f"forgetting_sft: negative are {negative}")
        return Provision(tables={role: {POSITIVE: part} for role, part in zip(roles, parts, strict=True)})

    def _subset(self, workshop: Workshop) -> Dataset:
        """The trusted rows, drawn by the run's seed."""
        dataset = workshop.datasets["retain"]
        count = max(1, int(self.reference_share * len(dataset.encoded) + 1e-9))
        order = np.random.default_rng(derived_seed(workshop.seed, self.name)).permutation(len(dataset.encoded))
        rows = sorted(order[:count].tolist())
        return replace(
            dataset,
            examples=tuple(dataset.examples[row] for row in rows),
            encoded=tuple(dataset.encoded[row] for row in rows),
        )


def _logps(workshop: Workshop, role: str, model: Any) -> np.ndarray:
    """(answer tokens,) log-probabilities in row order."""
    dataset = workshop.datasets[role]
    parts = [(batch, scored.logps.to(torch.float32)) for batch, scored in workshop.passes(dataset, model=model)]
    return workshop.per_position(dataset, parts)
