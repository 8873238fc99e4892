"""What methods share: the profile of published practice, and a retain term that composes with any forget term."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal, Self, TypeVar

from pydantic import Field, model_validator
from torch import Tensor

from expunge.data.collate import Positions
from expunge.errors import UsageError
from expunge.losses.hidden import hidden_distance_loss, mean_inverse_length
from expunge.losses.kl import kl_loss
from expunge.losses.nll import nll_loss
from expunge.methods.base import Context, Method, Needs, Reduction, Term
from expunge.models.head import Projected
from expunge.models.reference import Reference

T = TypeVar("T", bound=Tensor | Projected)
_POSITIONS: dict[str, Positions] = {"answer": "predict", "attended": "attended", "all": "all"}


class ProfiledMethod(Method):
    """A method whose published release normalises differently from its formula."""

    profile: Literal["canonical", "openunlearning"] = "canonical"
    """`openunlearning` reproduces the published release where it differs: token means are taken inside each
    micro-batch and averaged (so they depend on its size), and KL runs over every position, padding included."""

    @property
    def token_mean(self) -> Reduction:
        """The token mean of this profile."""
        return "token_mean" if self.canonical else "micro_token_mean"

    @property
    def canonical(self) -> bool:
        """Whether the formula is followed, not a release."""
        return self.profile == "canonical"


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
    retain: Literal["nll", "kl", "hidden"] = "nll"
    """Retain term: likelihood of the retain answers, KL divergence from the starting model, or distance from its
    hidden states (at `retain_layer`)."""
    kl_positions: Literal["answer", "attended", "all"] | None = None
    """Positions of the KL or hidden-state term: those that predict an answer token (ours), every attended one, or
    padding as well (published for KL). Unless said: `answer`; in the profile `openunlearning` `all` for KL, and for
    hidden states the positions that hold an answer token."""
    retain_layer: int | None = None
    """Transformer block, from 0 (negative: from the end), whose output `retain: hidden` keeps."""

    @model_validator(mode="after")
    def _a_layer_for_hidden_states(self) -> Self:
        if self.retain == "hidden" and self.alpha > 0 and self.hidden_layer is None:
            raise UsageError(
                "retain=hidden keeps the output of one transformer block, and none is named",
                hint="set method.retain_layer, e.g. to two thirds of the model's depth",
            )
        return self

    def needs(self) -> Needs:
        """Forget rows, and retain rows unless alpha is 0; the starting model only where a term reads it."""
        references = {"forget": self.forget_references} if self.forget_references else {}
        if self.alpha == 0:
            return Needs(roles=("forget",), references=references)
        if self.retain == "nll":
            return Needs(references=references)
        layer = self.hidden_layer
        if self.retain == "kl" or layer is None:
            return Needs(
                references=references | {"retain": (Reference("hidden"),)},
                positions={"retain": self.retain_positions},
            )
        return Needs(
            references=references | {"retain": (Reference("block", layer=layer),)},
            positions={"retain": self.retain_positions},
            hidden={"retain": layer},
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
        if self.retain == "hidden":
            return self._hidden_term(ctx)
        if self.retain == "nll":
            values = nll_loss(ctx.scored.logps)
        else:
            values = ctx.scored.per_position(_divergence, stored(ctx.ref.distribution, "hidden", ctx))
        return Term(values, unit="token", reduction=self.token_mean, weight=self.alpha)

    def _hidden_term(self, ctx: Context) -> Term:
        scored = ctx.scored
        if scored.hidden is None:
            raise UsageError("no hidden states were kept of the retain rows", hint="declare them in Needs.hidden")
        values = hidden_distance_loss(scored.hidden, stored(ctx.ref.block, "block", ctx))
        if self.canonical:
            return Term(values, unit="token", reduction="seq_mean", weight=self.alpha)
        values = values * mean_inverse_length(scored.row, scored.num_rows).to(values.dtype)
        return Term(values, unit="token", reduction="seq_sum", weight=self.alpha)

    @property
    def hidden_layer(self) -> int | None:
        """The block `retain: hidden` reads; a method with a layer of its own says so here."""
        return self.retain_layer

    @property
    def retain_positions(self) -> Positions:
        """Positions of the retain term."""
        if self.retain == "nll":
            return "predict"
        if self.kl_positions is not None:
            return _POSITIONS[self.kl_positions]
        if self.canonical:
            return "predict"
        return "all" if self.retain == "kl" else "held"


def _divergence(logits: Tensor, targets: Tensor, reference: Tensor) -> Tensor:
    return kl_loss(logits, reference)


def stored(values: T | None, kind: str, ctx: Context) -> T:
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
