"""Cut one optimizer step into micro-batches and count what it is divided by.

Every process draws the same step from the same seeded stream, so the global counts are known everywhere without a
message: nothing physical (budget, packing, processes) enters the denominators.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from expunge.data.collate import pack
from expunge.data.encode import Dataset
from expunge.data.stream import Step
from expunge.methods.base import Needs
from expunge.train.reduce import Counts


class MicroBatch(NamedTuple):
    """Rows of one role that are forwarded together, with the linked rows that travel with them."""

    role: str
    rows: list[int]
    linked: dict[str, list[int]]
    live: bool
    """False: a zero-weight repeat that keeps a process with fewer micro-batches in step with the others."""


class Plan(NamedTuple):
    """One process's share of an optimizer step."""

    micro_batches: list[MicroBatch]
    counts: dict[str, Counts]
    """Per dataset (roles and linked ones), over the whole step on all processes."""
    tokens: int
    """Real (unpadded) tokens of the step, on all processes."""
    epoch: int = 0
    """0-based pass over the anchor role."""

    def of(self, *roles: str) -> list[MicroBatch]:
        """The micro-batches of some roles, in order."""
        return [each for each in self.micro_batches if each.role in roles]


class Splitter:
    """Turns steps into plans.

    Args:
        datasets: encoded rows by role, linked datasets included.
        links: linked dataset -> (epochs, anchor rows) which row travels with an anchor row.
        needs: the method's declaration.
        budget: padded tokens of one micro-batch.
        rank, world: this process and how many there are.
    """

    def __init__(
        self,
        datasets: Mapping[str, Dataset],
        links: Mapping[str, np.ndarray],
        needs: Needs,
        *,
        budget: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.datasets, self.links, self.needs = datasets, links, needs
        self.budget, self.rank, self.world = budget, rank, world
        self.lengths = {name: dataset.lengths() for name, dataset in datasets.items()}
        self.scored = {name: _scored_positions(datasets[name], needs, name) for name in (*needs.roles, *needs.linked)}
        self.answers = {name: _answers(datasets[name], needs, name) for name in self.scored}

    def __call__(self, step: Step) -> Plan:
        """The micro-batches of this process and the global counts."""
        micro_batches: list[MicroBatch] = []
        counts: dict[str, Counts] = {}
        tokens = 0
        for role in self.needs.roles:
            rows = step.rows[role]
            linked = {
                name: [int(self.links[name][step.epoch % len(self.links[name]), row]) for row in rows]
                for name, anchor in self.needs.linked.items()
                if anchor == role
            }
            # Rows that are neither forwarded nor carry others are drawn, but nothing is done with them in a step.
            idle = role in self.needs.unscored and not linked
            own, total = ([], 0) if idle else self._share(role, rows, linked)
            micro_batches += own
            tokens += 0 if idle else self._tokens(role, rows, linked)
            for name, places in {role: rows, **linked}.items():
                counts[name] = Counts(
                    tokens=int(self.scored[name][places].sum()),
                    rows=len(places),
                    micro_batches=total,
                    answers=int(self.answers[name][places].sum()),
                )
        return Plan(micro_batches, counts, tokens, step.epoch)

    def _share(self, role: str, rows: list[int], linked: Mapping[str, list[int]]) -> tuple[list[MicroBatch], int]:
        """This process's micro-batches of a role, and how many live ones there are over all processes."""
        # A row weighs as much as its longest companion: both are forwarded at the same padded width or less.
        weight = np.max([self.lengths[role][rows], *(self.lengths[n][r] for n, r in linked.items())], axis=0)
        order = np.argsort(-weight, kind="stable")
        shares = [order[rank :: self.world] for rank in range(self.world)]
        packs = [
            [[int(share[i]) for i in group] for group in pack(weight[share], self.budget)] if len(share) else []
            for share in shares
        ]

        def build(places: list[int], *, live: bool) -> MicroBatch:
            companions = {name: [values[i] for i in places] for name, values in linked.items()}
            return MicroBatch(role, [rows[i] for i in places], companions, live)

        own = [build(places, live=True) for places in packs[self.rank]]
        missing = max(len(each) for each in packs) - len(own)
        own += [build([0], live=False)] * missing
        return own, sum(len(each) for each in packs)

    def _tokens(self, role: str, rows: list[int], linked: Mapping[str, list[int]]) -> int:
        own = 0 if role in self.needs.unscored else int(self.lengths[role][rows].sum())
        return own + sum(int(self.lengths[name][places].sum()) for name, places in linked.items())


def _scored_positions(dataset: Dataset, needs: Needs, name: str) -> np.ndarray:
    """(rows,) how many positions of each row are scored."""
    positions = needs.positions_of(name)
    if positions == "predict":
        return _answers(dataset, needs, name)
    return dataset.supervised() if positions == "held" else dataset.lengths()


def _answers(dataset: Dataset, needs: Needs, name: str) -> np.ndarray:
    """(rows,) how many scored positions of each row predict a supervised token."""
    counts: np.ndarray = np.maximum(dataset.supervised() - needs.skip_first.get(name, 0), 0)
    return counts
