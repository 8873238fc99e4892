"""The two energy terms of EUA: a method of their own, or beside any other method's terms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from expunge.data.collate import Positions
from expunge.losses.eua import energy, eua_forget_loss, eua_margins, eua_retain_loss
from expunge.methods.base import Context, Over, Reduction, Term
from expunge.methods.terms import stored
from expunge.methods.workshop import Provision, Workshop
from expunge.models.reference import Reference

_CONSTANTS = {"retain": "m_in", "forget": "m_out"}
_SIDES = {"retain": 0, "forget": 1}


class EnergyKeys(BaseModel):
    """Keys that say what the energy is and where its boundaries lie."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    ratio: float = Field(default=0.1, gt=0, le=1)
    """Share of the vocabulary behind each margin (the release's recipe: 0.1; its class: 0.3)."""
    temperature: float = Field(default=1.0, gt=0)
    """T of the energy (the release: 1)."""
    fill: Literal["zero", "neg_inf"] = "zero"
    """What the logits left out of a margin become (the release: zero); neg_inf asks far more of the forget set."""
    margin: Literal["token", "scalar"] = "token"
    """`token`: a boundary for every position (the release). `scalar`: one for all, the mean of the starting model's
    margins over the retain positions (m_in) and over the forget positions (m_out); our reading of a scalar margin,
    which no release has."""


@dataclass(frozen=True)
class EnergyTerms:
    """`TOKEN_MEAN_f relu(m_out - E)^2` and `TOKEN_MEAN_r relu(E - m_in)^2`, with what they need."""

    keys: EnergyKeys
    weight: float
    leading_temperature: bool = True
    """Whether an energy is `-T logsumexp(z / T)` or the published code's `-logsumexp(z / T)`."""
    positions: Positions = "predict"
    """Where energies are read."""
    reduction: Reduction = "token_mean"

    @property
    def references(self) -> tuple[Reference, ...]:
        """What each role reads of the starting model."""
        if self.keys.margin == "scalar":
            return ()
        return (
            Reference(
                "eua_margin",
                ratio=self.keys.ratio,
                temperature=self.keys.temperature,
                fill=self.keys.fill,
                leading_temperature=self.leading_temperature,
            ),
        )

    def prepare(self, workshop: Workshop) -> Provision:
        """The scalar margins as constants; nothing where every token has its own."""
        if self.keys.margin == "token":
            return Provision()
        return Provision(constants={name: self._mean_margin(workshop, role) for role, name in _CONSTANTS.items()})

    def forget(self, ctx: Context, *, over: Over = "scored") -> Term:
        """Squared hinge per token, from below."""
        values = eua_forget_loss(self._energy(ctx), self._margin(ctx))
        return Term(values, unit="token", reduction=self.reduction, weight=self.weight, over=over)

    def retain(self, ctx: Context, *, over: Over = "scored") -> Term:
        """Squared hinge per token, from above."""
        values = eua_retain_loss(self._energy(ctx), self._margin(ctx))
        return Term(values, unit="token", reduction=self.reduction, weight=self.weight, over=over)

    def _energy(self, ctx: Context) -> Tensor:
        temperature = self.keys.temperature
        lse = ctx.scored.scaled_lse(temperature)
        return energy(lse, temperature=temperature, leading_temperature=self.leading_temperature)

    def _margin(self, ctx: Context) -> Tensor:
        if self.keys.margin == "scalar":
            return ctx.constants[_CONSTANTS[ctx.role]]
        return stored(ctx.ref.eua_margin, "eua_margin", ctx)[:, _SIDES[ctx.role]]

    def _margins(self, logits: Tensor, targets: Tensor) -> Tensor:
        return eua_margins(
            logits,
            ratio=self.keys.ratio,
            temperature=self.keys.temperature,
            fill=self.keys.fill,
            leading_temperature=self.leading_temperature,
        )

    def _mean_margin(self, workshop: Workshop, role: str) -> Tensor:
        """The mean over every position of a role, whatever the batches."""
        total, count = torch.zeros((), dtype=torch.float64), 0
        for _, scored in workshop.passes(workshop.datasets[role], positions=self.positions):
            margins = scored.per_position(self._margins)
            total += margins[:, _SIDES[role]].double().sum().cpu()
            count += len(margins)
        return (total / max(count, 1)).float()
