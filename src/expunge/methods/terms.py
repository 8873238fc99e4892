"""What methods share: the profile of published practice, and a retain term that composes with any forget term."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from expunge.data.collate import Positions
from expunge.errors import UsageError
from expunge.losses.kl import kl_loss
from expunge.losses.nll import nll_loss
from expunge.methods.base import Context, Method, Needs, Reduction, Term
from expunge.models.reference import Reference

_POSITIONS: dict[str, Positions] = {"answer": "predict", "attended": "attended", "all": "all"}


class ProfiledMethod(Method):
    """A method whose published release normalises differently from its formula."""

    profile: Literal["canonical", "openunlearning"] = "canonical"
    """`openunlearning` reproduces the published release where it differs: token means are taken inside each
    micro-batch and averaged (so they depend on its size), and KL runs over every position, padding included."""

    @property
    def token_mean(self) -> Reduction:
        """The token mean of this profile."""
        return "token_mean" if self.profile == "canonical" else "micro_token_mean"


class RetainingMethod(ProfiledMethod):
    """A forget term weighted by gamma plus a retain term weighted by alpha.

    A subclass writes `forget_term` and lists in `forget_references` what it reads of the starting model there.
    """

    works_without_retain: ClassVar[bool] = True
    forget_references: ClassVar[tuple[Reference, ...]] = ()

    gamma: float = Field(default=1.0, ge=0)
    """Weight of the forget term (OpenUnlearning: 1)."""
    alpha: float = Field(default=1.0, ge=0)
    """Weight of the retain term (OpenUnlearning: 1); 0 runs without retain data."""
    retain: Literal["nll", "kl"] = "nll"
    """Retain term: likelihood of the retain answers, or KL divergence from the starting model."""
    kl_positions: Literal["answer", "attended", "all"] | None = None
    """Positions of the KL term: those that predict an answer token (ours), every attended one, or padding as well
    (published). Unless said: `answer`, and `all` in the profile `openunlearning`."""

    def needs(self) -> Needs:
        """Forget rows, and retain rows unless alpha is 0; the starting model only where a term reads it."""
        retains = self.alpha > 0
        references = {"forget": self.forget_references} if self.forget_references else {}
        if not retains:
            return Needs(roles=("forget",), references=references)
        if self.retain == "nll":
            return Needs(references=references)
        return Needs(
            references=references | {"retain": (Reference("hidden"),)},
            positions={"retain": _POSITIONS[self._kl_positions]},
        )

    def losses(self, ctx: Context) -> dict[str, Term]:
        """`forget` for a forget micro-batch, `retain` for a retain one."""
        if ctx.role == "forget":
            return {"forget": self.forget_term(ctx)}
        return {"retain": self.retain_term(ctx)}

    @abstractmethod
    def forget_term(self, ctx: Context) -> Term:
        """The forget loss of a forget micro-batch, weighted by gamma."""

    def retain_term(self, ctx: Context) -> Term:
        """The retain loss of a retain micro-batch, weighted by alpha."""
        if self.retain == "nll":
            values = nll_loss(ctx.scored.logps)
        else:
            values = kl_loss(ctx.scored.logits, stored(ctx.ref.logits, "hidden", ctx))
        return Term(values, unit="token", reduction=self.token_mean, weight=self.alpha)

    @property
    def _kl_positions(self) -> str:
        return self.kl_positions or ("answer" if self.profile == "canonical" else "all")


def stored(values: Tensor | None, kind: str, ctx: Context) -> Tensor:
    """`values`, which the method declared it reads of the starting model.

    Raises:
        UsageError: it was not provided; a default would silently change the objective.
    """
    if values is None:
        raise UsageError(
            f"the starting model's {kind} was not provided for the {ctx.role} rows",
            hint=f"declare Reference({kind!r}) under that role in Needs.references",
        )
    return values
