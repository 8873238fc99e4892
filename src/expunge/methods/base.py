"""What a method is: a frozen config plus named loss terms for one micro-batch. It never sees the engine.

The engine walks micro-batches of one role at a time (forget, retain), asks the method for that role's terms, divides
them by counts over the whole optimizer step on all processes, and adds them up. So batch size, accumulation, packing
and devices never change the result, and a gradient-level idea (GRU, UNO) can act on terms by name.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from expunge.data.collate import Positions
from expunge.errors import UsageError
from expunge.methods.workshop import Provision, Workshop
from expunge.models.reference import Reference, ReferenceValues
from expunge.models.score import Scored

Unit = Literal["token", "seq"]
Reduction = Literal["token_mean", "seq_sum", "seq_mean", "micro_token_mean", "sum"]
Over = Literal["scored", "answer"]


@dataclass(frozen=True)
class Term:
    """One named, unreduced loss, to be minimised.

    Reductions (counts are global over the optimizer step and every process):
        token_mean: sum of token values / number of scored positions of the role.
        seq_sum: values per sequence, or token values summed per sequence; mean over the role's sequences.
        seq_mean: token values averaged inside each sequence first; then the mean over sequences.
        micro_token_mean: parity with published code only: token mean inside each micro-batch, averaged over them.
        sum: added up as they are; the method divided by totals of the step (`Needs.totals`) itself.
    """

    values: Tensor
    """(N,) for unit `token`, (B,) for unit `seq`."""
    unit: Unit
    reduction: Reduction
    weight: float = 1.0
    dataset: str | None = None
    """Linked dataset the values run over, with its positions and counts; the context's own role unless said."""
    over: Over = "scored"
    """`answer`: only positions that predict a supervised token count; for positions beyond the answer."""


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
    skip_first: Mapping[str, int] = field(default_factory=dict)
    """Dataset -> supervised positions at the start of each row that are left out."""
    unscored: tuple[str, ...] = ()
    """Roles that only carry linked rows: they are not forwarded and have no `Context.scored`."""
    rows: Mapping[str, str] = field(default_factory=dict)
    """Linked dataset -> where its rows come from: `refusals` (one of data.refusals per row and epoch; what `alternate`
    is unless said) or `made` (by `Method.prepare`)."""
    hidden: Mapping[str, int] = field(default_factory=dict)
    """Dataset -> index of the transformer block whose output is kept at the scored positions."""
    truncate: bool = False
    """Whether the forward may end after that block: nothing reads logits."""
    totals: Literal["reference", "scored"] | None = None
    """Whether `Method.totals` is asked before a step: of tables alone, or after a forward without gradient."""

    def positions_of(self, dataset: str) -> Positions:
        """The positions scored of a dataset."""
        return self.positions.get(dataset, "predict")


@dataclass(frozen=True)
class Context:
    """One micro-batch as a method sees it."""

    role: str
    scores: Scored | None
    """Absent for a role that is not forwarded."""
    ref: ReferenceValues
    linked: Mapping[str, Context] = field(default_factory=dict)
    totals: Mapping[str, float] = field(default_factory=dict)
    """Sums of `Method.totals` over the step and every process."""
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    """What `Method.prepare` made once."""
    epoch: int = 0
    """0-based pass over the anchor role."""
    progress: float = 0.0
    """Share of the run's steps that are done, in [0, 1)."""

    @property
    def scored(self) -> Scored:
        """What the forward pass gave.

        Raises:
            UsageError: this role is declared as not forwarded.
        """
        if self.scores is None:
            raise UsageError(f"the {self.role} rows are not forwarded", hint="take them out of Needs.unscored")
        return self.scores


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
    granularity: ClassVar[str] = "token"
    """What one value of the forget loss belongs to: `token`, `sequence`, `hidden` (a state), `weights`."""
    experimental: ClassVar[bool] = False
    """Whether its source leaves open what we had to choose."""
    keeps_start: ClassVar[bool] = False
    """Whether `finish` reads the starting weights."""
    needs_weights: ClassVar[str] = ""
    """Why it cannot be carried out through adapters (`model.use_peft`); empty where it can."""
    train_settings: ClassVar[Mapping[str, Any]] = {}
    """Keys of the recipe's train section the method itself decides."""

    def needs(self) -> Needs:
        """What the engine must provide for this configuration."""
        return Needs()

    @abstractmethod
    def losses(self, ctx: Context) -> dict[str, Term]:
        """The terms of this micro-batch's role, by name (`forget`, `retain`, `retain_energy`, ...)."""

    def totals(self, ctx: Context) -> dict[str, Tensor]:
        """Scalars of this micro-batch that are added up over the step before `losses` is asked (`Needs.totals`)."""
        return {}

    def prepare(self, workshop: Workshop) -> Provision:
        """Rows, per-token tables and constants made once from the starting model, before the first step."""
        return Provision()

    @property
    def refresh_every(self) -> int | None:
        """Epochs after which `refresh` is asked again; None: never."""
        return None

    def refresh(self, workshop: Workshop, epoch: int) -> Provision:
        """Rows made anew with the model as trained so far; what it does not mention stays."""
        return Provision()

    def trainable(self) -> tuple[str, ...]:
        """Regular expressions of the parameters that are trained; none: all of them."""
        return ()

    def wrappers(self) -> tuple[Mapping[str, Any], ...]:
        """Wrappers it brings along, each unless the recipe names one of the same kind."""
        return ()

    def finish(self, model: Any, start: Mapping[str, Tensor]) -> None:
        """Change the trained weights in place after the last step, without gradient.

        Args:
            model: as trained.
            start: starting values of what can be trained, by name; empty unless `keeps_start`.
        """


def makes_first(method: Method) -> bool:
    """Whether a method makes rows, tables or constants itself before the first step, as it is configured."""
    return type(method).prepare is not Method.prepare and bool(getattr(method, "prepares", True))
