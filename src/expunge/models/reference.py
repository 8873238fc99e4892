"""The frozen starting model as a table: what methods may ask of it. (Built by `expunge.models.reference_table`.)"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from expunge.models.head import Projected

ReferenceKind = Literal["seq_logp", "token_logp", "eua_margin", "hidden", "block"]


@dataclass(frozen=True)
class Reference:
    """One quantity of the starting model.

    Kinds:
        seq_logp: (B,) log-probability of each sequence (NPO, DPO).
        token_logp: (N,) log-probability of each target (TNPO).
        eua_margin: (N, 2) the energies `m_in, m_out` of the most and least preferred tokens (EUA).
        hidden: the full distribution, as last hidden states re-projected through the frozen output head (KL).
        block: (N, d) output of one transformer block (RMU's retain term).
    """

    kind: ReferenceKind
    ratio: float = 0.1
    """eua_margin only: share of the vocabulary on each side, k = int(ratio * V)."""
    temperature: float = 1.0
    """eua_margin only."""
    fill: Literal["zero", "neg_inf"] = "zero"
    """eua_margin only: what the unselected logits become."""
    leading_temperature: bool = True
    """eua_margin only: whether an energy is `-T logsumexp(z / T)` or the published code's `-logsumexp(z / T)`."""
    layer: int = 0
    """block only: its index, from 0."""


class StoredRows:
    """Values of a micro-batch's positions in a stored array, read when they are asked for.

    Args:
        array: (tokens, ...), usually memory-mapped.
        index: (N,) its rows, in the order of the positions.
        device: of what is read.
    """

    def __init__(self, array: np.ndarray, index: np.ndarray, device: torch.device) -> None:
        self.array, self.index, self.device = array, index, device

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, part: slice) -> Tensor:
        """(n, ...) of some positions."""
        values = np.ascontiguousarray(self.array[self.index[part]])
        return torch.from_numpy(values).to(self.device, non_blocking=True)


class OwnTables(Mapping[str, Tensor]):
    """Slices of the tables a method made itself; none is read before it is asked for."""

    def __init__(self, stored: Mapping[str, StoredRows]) -> None:
        self.stored = stored
        self._read: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._read:
            self._read[name] = self.stored[name][:]
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


def rows_of(own: Mapping[str, Tensor], name: str) -> Tensor | StoredRows:
    """A table of one's own for `Scored.per_position`, which then reads as much of it as a chunk needs."""
    return own.stored[name] if isinstance(own, OwnTables) else own[name]


class ReferenceValues(NamedTuple):
    """A micro-batch's slice of the table; only what was asked for is filled."""

    seq_logp: Tensor | None = None  # (B,)
    token_logp: Tensor | None = None  # (N,)
    eua_margin: Tensor | None = None  # (N, 2)
    distribution: Tensor | Projected | None = None
    """From `hidden`: (N, V) logits, made or to be made; for `Scored.per_position`."""
    block: Tensor | None = None  # (N, d)
    own: Mapping[str, Tensor] = MappingProxyType({})
    """Slices of the tables a method made itself."""

    @property
    def logits(self) -> Tensor | None:
        """(N, V) all logits of `distribution` at once."""
        return self.distribution[:] if isinstance(self.distribution, Projected) else self.distribution
