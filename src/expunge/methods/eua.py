"""EUA (distinguishable deletion): lift forget energy over a boundary, keep retain energy below one."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from expunge.errors import UsageError
from expunge.losses.eua import energy, eua_forget_loss, eua_retain_loss
from expunge.methods.base import Context, Needs, Term
from expunge.methods.terms import RetainingMethod, stored
from expunge.models.reference import Reference


class EUA(RetainingMethod):
    """`L = gamma (TOKEN_MEAN_f relu(m_out - E)^2 + TOKEN_MEAN_r relu(E - m_in)^2) + alpha L_retain`.

    The energy `E = -T logsumexp(z / T)` separates known from unknown prompts afterwards, so a deployed model can
    refuse. Shifting all logits also changes it: always read energies next to extraction strength.
    """

    name: ClassVar[str] = "eua"
    paper: ClassVar[str] = "Yang et al., Distinguishable Deletion, arXiv 2605.16776"
    works_without_retain: ClassVar[bool] = False

    gamma: float = Field(default=0.05, ge=0)
    """Weight of both energy terms (the release's recipe: 0.05; its class: 1)."""
    alpha: float = Field(default=1.0, ge=0)
    """Weight of the retain likelihood or KL (the release's recipe: 1; its class: 0.1). The energy terms need retain
    rows even at 0."""
    ratio: float = Field(default=0.1, gt=0, le=1)
    """Share of the vocabulary behind each margin (the release's recipe: 0.1; its class: 0.3)."""
    temperature: float = Field(default=1.0, gt=0)
    """T of the energy (the release: 1)."""
    fill: Literal["zero", "neg_inf"] = "zero"
    """What the logits left out of a margin become (the release: zero); neg_inf asks far more of the forget set."""

    @model_validator(mode="after")
    def _one_set_of_positions(self) -> Self:
        if self.alpha > 0 and self.retain == "kl" and self._kl_positions != "answer":
            raise UsageError(
                f"EUA reads retain energies on answer positions, so its KL cannot run over {self._kl_positions!r} ones",
                hint="set method.kl_positions=answer",
            )
        return self

    def needs(self) -> Needs:
        """Forget and retain rows, with two margins per token; nothing is forwarded twice."""
        needs = super().needs()
        margin = Reference(
            "eua_margin",
            ratio=self.ratio,
            temperature=self.temperature,
            fill=self.fill,
            leading_temperature=self._leading_temperature,
        )
        retain = (*needs.references.get("retain", ()), margin)
        return replace(needs, roles=("forget", "retain"), references={"forget": (margin,), "retain": retain})

    def losses(self, ctx: Context) -> dict[str, Term]:
        """`forget` for a forget micro-batch, `retain_energy` and (unless alpha is 0) `retain` for a retain one."""
        if ctx.role == "forget":
            return {"forget": self.forget_term(ctx)}
        values = eua_retain_loss(self._energy(ctx), stored(ctx.ref.eua_margin, "eua_margin", ctx)[:, 0])
        terms = {"retain_energy": Term(values, unit="token", reduction=self.token_mean, weight=self.gamma)}
        return terms | ({"retain": self.retain_term(ctx)} if self.alpha > 0 else {})

    def forget_term(self, ctx: Context) -> Term:
        """Squared hinge per token, from below."""
        values = eua_forget_loss(self._energy(ctx), stored(ctx.ref.eua_margin, "eua_margin", ctx)[:, 1])
        return Term(values, unit="token", reduction=self.token_mean, weight=self.gamma)

    def _energy(self, ctx: Context) -> Tensor:
        lse = ctx.scored.scaled_lse(self.temperature)
        return energy(lse, temperature=self.temperature, leading_temperature=self._leading_temperature)

    @property
    def _leading_temperature(self) -> bool:
        return self.profile == "canonical"
