"""An unlearning trainer as published ones are written: readable, correct, and without any of expunge's ideas.

Rows in dataset order, padded on the right to the longest of the batch; HF labels with -100; logits of every position;
one forward for the forget rows and one for the retain rows; the starting model kept in memory and forwarded in every
step; gradient clipping and AdamW. Logits are taken to float32 before any softmax.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE = -100


class Row(NamedTuple):
    """One tokenised row."""

    input_ids: list[int]
    labels: list[int]
    """-100 on the prompt."""


class Inputs(NamedTuple):
    """A padded batch, (B, T) each."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


def pad_right(rows: Sequence[Row], *, pad_id: int, device: torch.device) -> Inputs:
    """Pad to the longest row."""
    width = max(len(row.input_ids) for row in rows)

    def padded(values: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([v + [fill] * (width - len(v)) for v in values], device=device)

    return Inputs(
        padded([row.input_ids for row in rows], pad_id),
        padded([[1] * len(row.input_ids) for row in rows], 0),
        padded([row.labels for row in rows], IGNORE),
    )


class Objective(NamedTuple):
    """The hyperparameters of the three methods, with the published defaults."""

    name: str
    beta: float = 0.1
    gamma: float = 1.0
    alpha: float = 1.0
    ratio: float = 0.1

    @property
    def needs_reference(self) -> bool:
        return self.name != "grad_diff"


class Trainer:
    """Trains `model` in place, one batch of forget and one of retain rows per step.

    Args:
        model: float32, on its device.
        objective: what to minimise.
        pad_id: padding token.
        learning_rate: AdamW's.
        max_grad_norm: gradients are clipped to it.
        repeat_retain: EUA forwards the retain rows once for the likelihood and once more for the energies, as released.
        watch: a `Stopwatch`, to see where the time goes.
    """

    def __init__(
        self,
        model: Any,
        objective: Objective,
        *,
        pad_id: int,
        learning_rate: float,
        max_grad_norm: float = 1.0,
        repeat_retain: bool = False,
        watch: Any = None,
    ) -> None:
        self.model, self.objective, self.pad_id, self.repeat_retain = model, objective, pad_id, repeat_retain
        self.max_grad_norm, self.watch = max_grad_norm, watch
        self.device = next(model.parameters()).device
        self.reference = copy.deepcopy(model).eval().requires_grad_(False) if objective.needs_reference else None
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0, fused=True)
        self.forwards = 0
        self.model.train()

    def step(self, forget: Sequence[Row], retain: Sequence[Row]) -> float:
        """One optimizer step; the loss before it."""
        with self._part("collate"):
            batches = [pad_right(rows, pad_id=self.pad_id, device=self.device) for rows in (forget, retain)]
        with self._part("forward"):
            loss = self.loss(*batches)
        with self._part("backward"):
            loss.backward()
        with self._part("clip and optimizer"):
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def loss(self, forget: Inputs, retain: Inputs) -> Tensor:
        """The objective of a step."""
        return {"grad_diff": self._grad_diff, "npo": self._npo, "eua": self._eua}[self.objective.name](forget, retain)

    def _grad_diff(self, forget: Inputs, retain: Inputs) -> Tensor:
        return self.objective.alpha * self._nll(retain) - self.objective.gamma * self._nll(forget)

    def _npo(self, forget: Inputs, retain: Inputs) -> Tensor:
        beta = self.objective.beta
        logps = sequence_logps(self._forward(self.model, forget).logits, forget.labels)
        with torch.no_grad():
            before = sequence_logps(self._forward(self.reference, forget).logits, forget.labels)
        forgotten = -(2 / beta) * F.logsigmoid(-beta * (logps - before)).mean()
        return self.objective.gamma * forgotten + self.objective.alpha * self._nll(retain)

    def _eua(self, forget: Inputs, retain: Inputs) -> Tensor:
        ratio = self.objective.ratio
        first = self._forward(self.model, retain, labels=retain.labels)
        again = self._forward(self.model, retain) if self.repeat_retain else first
        with torch.no_grad():
            m_in = extreme_energy(self._forward(self.reference, retain).logits, ratio, largest=True)
            m_out = extreme_energy(self._forward(self.reference, forget).logits, ratio, largest=False)
        kept = masked_mean((energy(again.logits) - m_in).relu().square(), retain.labels)
        lifted = masked_mean((m_out - energy(self._forward(self.model, forget).logits)).relu().square(), forget.labels)
        return self.objective.gamma * (kept + lifted) + self.objective.alpha * first.loss

    def _nll(self, inputs: Inputs) -> Tensor:
        loss: Tensor = self._forward(self.model, inputs, labels=inputs.labels).loss
        return loss

    def _forward(self, model: Any, inputs: Inputs, **more: Any) -> Any:
        self.forwards += 1
        cuda = self.device.type == "cuda"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=cuda):
            return model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, use_cache=False, **more)

    def _part(self, name: str) -> AbstractContextManager[None]:
        return self.watch.part(name) if self.watch else nullcontext()


def sequence_logps(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) log-probability of each row's labelled tokens."""
    losses = F.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), labels[:, 1:], ignore_index=IGNORE, reduction="none"
    )
    return -losses.sum(-1)


def energy(logits: Tensor) -> Tensor:
    """(B, T) energy of every position."""
    return -logits.float().logsumexp(-1)


def extreme_energy(logits: Tensor, ratio: float, *, largest: bool) -> Tensor:
    """(B, T) energy of the most or least preferred tokens alone, all others set to 0."""
    logits = logits.float()
    found = logits.topk(int(logits.shape[-1] * ratio), largest=largest)
    return energy(torch.zeros_like(logits).scatter(-1, found.indices, found.values))


def masked_mean(values: Tensor, labels: Tensor) -> Tensor:
    """Mean of (B, T) values over the positions that predict a labelled token."""
    wanted = labels[:, 1:] != IGNORE
    return values[:, :-1][wanted].mean()
