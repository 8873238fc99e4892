"""Which rows make up each optimizer step: a pass over the anchor role, other roles drawn beside it.

Nothing is stored but how many rows each role has given out: every permutation is a function of (seed, role, pass), so
a stream that was stopped continues bit for bit.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from expunge.errors import UsageError

Draw = Literal["permutation", "replacement"]


class Step(NamedTuple):
    """The rows of one optimizer step."""

    epoch: int
    """0-based pass over the anchor role."""
    rows: dict[str, list[int]]
    """Role -> dataset indices."""


class PairedStream:
    """Steps over an anchor role (the forget set) with rows of the other roles (retain) beside it.

    Each epoch covers the anchor exactly once, newly shuffled; its last batch may be partial and counts. The other roles
    do not restart with an epoch: they run through permutation after permutation, so every row is drawn equally often
    (`replacement`: uniformly with replacement, published practice). They give their full batch with every step, except
    that a role with the anchor's batch size gives as many rows as the anchor does.

    Args:
        sizes: role -> number of rows.
        anchor: the role whose passes are epochs; alone in `sizes` for fine-tuning.
        batch: role -> rows per step; larger than the role means all of it.
        seed: of every shuffle.
        draw: how roles other than the anchor are drawn.

    Raises:
        UsageError: an unknown anchor, a role without rows or batch size, a negative seed.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        *,
        anchor: str,
        batch: Mapping[str, int],
        seed: int,
        draw: Draw = "permutation",
    ) -> None:
        if anchor not in sizes:
            raise UsageError(f"the anchor {anchor!r} is not among the roles {sorted(sizes)}")
        for role, size in sizes.items():
            if size < 1 or batch.get(role, 0) < 1:
                raise UsageError(f"role {role!r}: {size} rows, batch {batch.get(role, 0)}; both must be positive")
        if seed < 0:
            raise UsageError(f"the seed is {seed}", hint="seeds are 0 or more")
        self._sizes, self._anchor, self._seed, self._draw = dict(sizes), anchor, seed, draw
        self._batch = {role: batch[role] for role in sizes}
        self._drawn = dict.fromkeys(sizes, 0)
        self._orders: dict[str, tuple[int, np.ndarray]] = {}
        self.steps_per_epoch = math.ceil(sizes[anchor] / min(batch[anchor], sizes[anchor]))

    def next(self) -> Step:
        """The next step; the stream has no end."""
        size = self._sizes[self._anchor]
        epoch, given = divmod(self._drawn[self._anchor], size)
        count = min(self._batch[self._anchor], size - given)
        rows = {}
        for role in self._sizes:
            paired = role == self._anchor or self._batch[role] == self._batch[self._anchor]
            rows[role] = self._take(role, count if paired else self._batch[role])
        return Step(epoch, rows)

    @property
    def epoch(self) -> int:
        """0-based pass over the anchor role that the last step drawn belongs to."""
        return max(self._drawn[self._anchor] - 1, 0) // self._sizes[self._anchor]

    def state(self) -> dict[str, Any]:
        """Where the stream stands; JSON."""
        return {**self._settings(), "drawn": dict(self._drawn)}

    def load(self, state: dict[str, Any]) -> None:
        """Continue where another stream of the same settings stood.

        Raises:
            UsageError: other sizes, batches, seed, anchor or draw: the rows to come would be other ones.
        """
        own = self._settings()
        differing = [key for key, value in own.items() if state.get(key) != value]
        if differing:
            raise UsageError(
                "the checkpoint's data stream does not fit this run: "
                + "; ".join(f"{key} was {state.get(key)!r}, now {own[key]!r}" for key in differing),
                hint="resume with the data and settings the run was started with",
            )
        self._drawn = {role: int(state["drawn"][role]) for role in self._sizes}

    def _settings(self) -> dict[str, Any]:
        return {
            "sizes": self._sizes,
            "anchor": self._anchor,
            "batch": self._batch,
            "seed": self._seed,
            "draw": self._draw,
        }

    def _take(self, role: str, count: int) -> list[int]:
        size, start = self._sizes[role], self._drawn[role]
        count = min(count, size)
        self._drawn[role] += count
        if role != self._anchor and self._draw == "replacement":
            words = self._bits(role, "replacement", 0).advance(start).random_raw(count)
            return [int(word % size) for word in words]
        places = (divmod(place, size) for place in range(start, start + count))
        return [int(self._order(role, number)[place]) for number, place in places]

    def _order(self, role: str, number: int) -> np.ndarray:
        """Pass `number` over a role: a permutation of its rows."""
        known = self._orders.get(role)
        if known is None or known[0] != number:
            words = self._bits(role, "permutation", number).random_raw(self._sizes[role])
            known = self._orders[role] = (number, np.argsort(words, kind="stable"))
        return known[1]

    def _bits(self, role: str, use: str, number: int) -> np.random.PCG64:
        """Raw bits, which numpy keeps the same between its versions (its permutations it does not)."""
        words = (self._seed, zlib.crc32(role.encode()), zlib.crc32(use.encode()), number)
        return np.random.PCG64(np.random.SeedSequence(words))
