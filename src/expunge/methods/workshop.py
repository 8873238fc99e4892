"""What a method may do before training: sample, encode, run and fine-tune models; and what it may bring back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from expunge.data.collate import Batch, Positions
from expunge.data.encode import Dataset
from expunge.data.example import Example, Turn
from expunge.data.template import Template
from expunge.models.score import Scored


@dataclass(frozen=True)
class Provision:
    """What a method made itself; kept in the run directory, so a resumed run reads the same."""

    rows: Mapping[str, Sequence[Sequence[Example]]] = field(default_factory=dict)
    """Linked dataset -> variants, one row per anchor row each, in dataset order; epoch e uses number e mod how many."""
    tables: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    """Dataset -> name -> (positions, ...) over its scored positions in row order: `Context.ref.own`."""
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    """Name -> tensor: `Context.constants`."""


class Workshop(Protocol):
    """A model and the rows of a run, before or between training steps."""

    model: Any
    """The starting model, or in `refresh` the model as trained so far: evaluation mode, never to be changed."""
    tokenizer: Any
    template: Template
    datasets: Mapping[str, Dataset]
    """Role -> encoded rows."""
    seed: int
    device: torch.device
    pad_id: int
    token_budget: int
    """Padded tokens of one forward pass."""
    inherited: Mapping[str, Tensor]
    """What the masks of the request before this one left; empty unless this is a later request of a sequence."""

    def sample(
        self,
        prompts: Sequence[Sequence[Turn]],
        *,
        temperature: float,
        max_new_tokens: int,
        seed: int,
        model: Any = None,
    ) -> list[str]:
        """One continuation of every conversation; greedy at temperature 0.

        Args:
            prompts: conversations that end before the answer.
            temperature: of the softmax, >= 0.
            max_new_tokens: limit of each answer.
            seed: with a prompt's place it decides the draw, however prompts share a batch.
            model: another one than `self.model`.
        """

    def encode(self, examples: Sequence[Example], role: str) -> Dataset:
        """Rows as this run encodes them.

        Raises:
            DataError: rows that do not fit.
        """

    def passes(
        self,
        dataset: Dataset,
        *,
        model: Any = None,
        positions: Positions = "predict",
        hidden: int | None = None,
    ) -> Iterator[tuple[Batch, Scored]]:
        """Forward passes over a dataset without gradient, packed under the budget, not in row order."""

    def per_position(
        self, dataset: Dataset, parts: Sequence[tuple[Batch, Tensor]], *, positions: Positions = "predict"
    ) -> np.ndarray:
        """Values of `passes` put into row order: (positions of the dataset, ...)."""

    def fine_tuned(
        self,
        rows: Dataset | Sequence[Example],
        *,
        learning_rate: float,
        epochs: float,
        batch_size: int | None = None,
        from_scratch: bool = False,
        seed: int | None = None,
    ) -> Any:
        """A copy of the model, trained on the rows' answers by AdamW; evaluation mode.

        Args:
            rows: encoded, or encoded here.
            learning_rate: peak rate of the linear schedule.
            epochs: passes over the rows.
            batch_size: rows per step; the run's own unless said.
            from_scratch: start from new weights of the same shape.
            seed: of row order and new weights; the run's unless said.
        """

    def gradient(self, dataset: Dataset, *, model: Any = None) -> dict[str, Tensor]:
        """Gradient of the token-mean NLL over a whole dataset, by parameter name."""

    def role_gradient(self, role: str) -> dict[str, Tensor]:
        """Gradient of the method's own weighted terms of one role, over its whole dataset at once (wrappers only)."""

    def note(self, text: str) -> None:
        """Say something in the run's events and on the screen."""
