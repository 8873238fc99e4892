"""EUA (distinguishable deletion): lift forget energy over a boundary, keep retain energy below one."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from expunge.data.collate import Positions
from expunge.errors import UsageError
from expunge.methods.base import Context, Needs, Over, Term
from expunge.methods.energy import EnergyKeys, EnergyTerms
from expunge.methods.terms import RetainingMethod
from expunge.methods.workshop import Provision, Workshop


class EUA(RetainingMethod, EnergyKeys):
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
    """Weight of the retain likelihood, KL or hidden-state distance (the release's recipe: 1; its class: 0.1). The
    energy terms need retain rows even at 0."""
    energy_positions: Literal["answer", "attended"] = "answer"
    """Where energies are read: positions that predict an answer token (the release), or those of the whole prompt and
    answer. The retain likelihood stays on the answer."""

    @model_validator(mode="after")
    def _positions_that_go_together(self) -> Self:
        if self.alpha > 0 and self.retain_positions not in ("predict", "attended"):
            found = self.kl_positions or self.retain_positions
            raise UsageError(
                f"EUA reads retain energies on answer or attended positions, so its {self.retain} term cannot run over "
                f"{found!r} ones",
                hint="set method.kl_positions=answer",
            )
        return self

    def needs(self) -> Needs:
        """Forget and retain rows, with two margins per token; nothing is forwarded twice."""
        needs = super().needs()
        own = self._energies.references
        references = {"forget": own, "retain": (*needs.references.get("retain", ()), *own)}
        positions = {"forget": self._energies.positions, "retain": self._scored("retain")}
        return replace(
            needs,
            roles=("forget", "retain"),
            references={role: asked for role, asked in references.items() if asked},
            positions={role: where for role, where in positions.items() if where != "predict"},
        )

    @property
    def prepares(self) -> bool:
        """Whether `prepare` makes something as configured."""
        return self.margin == "scalar"

    def prepare(self, workshop: Workshop) -> Provision:
        """The two scalar margins, where they are asked for."""
        return self._energies.prepare(workshop)

    def losses(self, ctx: Context) -> dict[str, Term]:
        """`forget` for a forget micro-batch, `retain_energy` and (unless alpha is 0) `retain` for a retain one."""
        if ctx.role == "forget":
            return {"forget": self.forget_term(ctx)}
        terms = {"retain_energy": self._energies.retain(ctx, over=self._over("retain", self._energies.positions))}
        if self.alpha > 0:
            over = self._over("retain", self.retain_positions)
            terms["retain"] = replace(self.retain_term(ctx), over=over)
        return terms

    def forget_term(self, ctx: Context) -> Term:
        """Squared hinge per token, from below."""
        return self._energies.forget(ctx)

    def _scored(self, role: str) -> Positions:
        """The wider of the positions that the terms of a role run over."""
        wanted = {self._energies.positions}
        if role == "retain" and self.alpha > 0:
            wanted.add(self.retain_positions)
        return "attended" if "attended" in wanted else "predict"

    def _over(self, role: str, positions: Positions) -> Over:
        return "answer" if positions == "predict" and self._scored(role) != "predict" else "scored"

    @property
    def _energies(self) -> EnergyTerms:
        return EnergyTerms(
            self,
            self.gamma,
            leading_temperature=self.canonical,
            positions="predict" if self.energy_positions == "answer" else "attended",
            reduction=self.token_mean,
        )
