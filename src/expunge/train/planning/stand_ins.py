"""What a rehearsal puts in the place of things that only a run has: tables, made numbers, other processes, losses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from expunge.data.collate import Batch, Positions
from expunge.data.encode import Dataset
from expunge.data.prepare import Prepared
from expunge.methods.base import Context, Method, Needs, Term
from expunge.models.head import frozen_head
from expunge.models.reference import Reference, ReferenceValues
from expunge.models.reference_build import Questions
from expunge.models.reference_table import ReferenceTable, empty_table


def with_stand_ins(prepared: Prepared, needs: Needs) -> Prepared:
    """Rows a method will make itself are counted as the rows they travel with."""
    made = {name: anchor for name, anchor in needs.linked.items() if name not in prepared.datasets}
    datasets = {**prepared.datasets, **{name: prepared.datasets[anchor] for name, anchor in made.items()}}
    links = {name: np.arange(len(datasets[name].encoded))[None] for name in made}
    return replace(prepared, datasets=datasets, links={**prepared.links, **links})


@dataclass(frozen=True)
class BlankTable(ReferenceTable):
    """A reference table of the right shapes; a method's own tables are there under any name, one number a position."""

    def values(self, batch: Batch) -> ReferenceValues:
        """The slice of a micro-batch."""
        return super().values(batch)._replace(own=Blanks(len(batch.targets)))


class Blanks(Mapping[str, Tensor]):
    """Ones of one shape under every name."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def __getitem__(self, name: str) -> Tensor:
        return torch.ones(self.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def blank_table(
    dataset: Dataset, items: tuple[Reference, ...], model: Any, *, positions: Positions, skip_first: int
) -> BlankTable:
    """The table of a dataset without its numbers.

    Args:
        dataset: its rows.
        items: what is asked of the starting model.
        model: for the head and its width.
        positions: which ones are scored.
        skip_first: how many of each row's are left out at its start.
    """
    if not items:
        # Nothing is read from it but where rows begin; and of every position a table could not even say that.
        return BlankTable({}, np.zeros(len(dataset.encoded) + 1, dtype=np.int64))
    offsets = empty_table(dataset, positions=positions, skip_first=skip_first).offsets
    head = frozen_head(model) if any(item.kind == "hidden" for item in items) else None
    questions = Questions(model, dataset, items, offsets, positions, skip_first, 0, 0, head)
    arrays = {str(item.kind): np.broadcast_to(np.float32(0), questions.shape(item)) for item in items}
    return BlankTable(arrays, offsets, head)


def table_bytes(prepared: Prepared, needs: Needs, model: Any) -> int:
    """Size of the tables a method asks for, as they are stored."""
    total = 0
    for name, items in needs.references.items():
        table = blank_table(
            prepared.datasets[name],
            items,
            model,
            positions=needs.positions_of(name),
            skip_first=needs.skip_first.get(name, 0),
        )
        total += sum(array.nbytes for array in table.arrays.values()) + table.offsets.nbytes
    return total


class Alone:
    """Accelerate's part in a step of one process; the library's own object would fix the device of later runs."""

    def no_sync(self, model: Any) -> nullcontext[None]:
        """Nobody to be in step with."""
        return nullcontext()


class Likelihood:
    """`-log p` on every row a method forwards, where its own losses cannot be rehearsed.

    Args:
        method: what is replaced.
    """

    def __init__(self, method: Method) -> None:
        self._needs = replace(method.needs(), totals=None)

    def needs(self) -> Needs:
        """As the method's, without sums over the step."""
        return self._needs

    def losses(self, ctx: Context) -> dict[str, Term]:
        """One term for the rows and one for each linked dataset."""
        terms = {} if ctx.scores is None else {ctx.role: _likelihood(ctx)}
        return terms | {name: replace(_likelihood(other), dataset=name) for name, other in ctx.linked.items()}


def _likelihood(ctx: Context) -> Term:
    return Term(-ctx.scored.logps, unit="token", reduction="token_mean")
