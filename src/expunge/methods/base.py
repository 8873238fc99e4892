"""What a method is: a frozen config plus named loss terms for one micro-batch. It never sees the engine.

The engine walks micro-batches of one role at a time (forget, retain), asks the method for that role's terms, divides
them by counts over the whole optimizer step on all processes, and adds them up. So batch size, accumulation, packing
and devices never change the result, and a gradient-level idea (GRU, UNO) can act on terms by name.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from expunge.data.collate import Positions
from expunge.models.reference import Reference, ReferenceValues
from expunge.models.score import Scored

Unit = Literal["token", "seq"]
Reduction = Literal["token_mean", "seq_sum", "seq_mean", "micro_token_mean"]


@dataclass(frozen=True)
class Term:
    """One named, unreduced loss, to be minimised.

    Reductions (counts are global over the optimizer step and every process):
        token_mean: sum of token values / number of scored positions of the role.
        seq_sum: values per sequence, or token values summed per sequence; mean over the role's sequences.
        seq_mean: token values averaged inside each sequence first; then the mean over sequences.
        micro_token_mean: parity with published code only: token mean inside each micro-batch, averaged over them.
    """

    values: Tensor
    """(N,) for unit `token`, (B,) for unit `seq`."""
    unit: Unit
    reduction: Reduction
    weight: float = 1.0


@dataclass(frozen=True)
class Needs:
    """What the engine must provide; declared once, so nothing is computed that is not used."""

    roles: tuple[str, ...] = ("forget", "retain")
    """Datasets that are forwarded, each in its own micro-batches."""
    linked: Mapping[str, str] = field(default_factory=dict)
    """Extra dataset -> the role its rows travel with, row for row (`{"alternate": "forget"}`)."""
    references: Mapping[str, tuple[Reference, ...]] = field(default_factory=dict)
    """Per dataset, what is read from the frozen starting model (a table, built once)."""
    positions: Mapping[str, Positions] = field(default_factory=dict)
    """Positions scored per dataset; `predict` (those that predict a supervised token) unless said."""


@dataclass(frozen=True)
class Context:
    """One micro-batch as a method sees it."""

    role: str
    scored: Scored
    ref: ReferenceValues
    linked: Mapping[str, Context] = field(default_factory=dict)


class Method(BaseModel):
    """Base of every method: a frozen pydantic config whose fields are the recipe's `method:` keys.

    `gamma` weighs the forget term and `alpha` the retain term, everywhere.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    name: ClassVar[str]
    paper: ClassVar[str]
    """Where it was published."""
    works_without_retain: ClassVar[bool] = False
    """Whether it can run on forget rows alone; with `alpha: 0` where it has a retain term."""

    def needs(self) -> Needs:
        """What the engine must provide for this configuration."""
        return Needs()

    @abstractmethod
    def losses(self, ctx: Context) -> dict[str, Term]:
        """The terms of this micro-batch's role, by name (`forget`, `retain`, `retain_energy`, ...)."""
