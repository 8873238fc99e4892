"""EEPO's sample-then-forget step: for a moment a model holds back what it just said, and says something else.

A component for reinforcement learning loops, not an unlearning method: sample half of the responses, enter
`forgetting_step` with them, sample the other half inside, leave; the weights have the bits they had.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from expunge.data.collate import Batch
from expunge.losses.eepo import eepo_loss
from expunge.losses.segment import segment_mean
from expunge.models.load import autocast
from expunge.models.score import score


@dataclass(frozen=True)
class ForgettingStep:
    """What the step inside `forgetting_step` did."""

    taken: bool
    loss: float | None
    """Before the step, nats; None where none was taken."""


@contextmanager
def forgetting_step(
    model: Any,
    responses: Sequence[Batch],
    *,
    learning_rate: float = 3e-3,
    eps: float = 1e-6,
    active: bool = True,
) -> Iterator[ForgettingStep]:
    """One step of plain gradient descent on the responses' forgetting loss; inside, the model is the changed one.

    `L = mean over responses of mean_t -log(1 - min(p_t, 1 - eps))`, `theta' = theta - learning_rate * grad L`. On
    leaving, also by an exception, every parameter has its old bits; gradients in `grad` are never touched. Parameters
    that do not require a gradient stay as they are throughout.

    Args:
        model: the rollout model.
        responses: sampled responses as micro-batches, their tokens supervised.
        learning_rate: of the one step (authors: 3e-3).
        eps: see `eepo_loss`.
        active: the indicator; False: nothing happens (authors: only while the entropy is low, `EntropyGate`).

    Yields:
        Whether a step was taken, and the loss before it.

    Source:
        Chen et al., EEPO, arXiv 2510.05837.
    """
    if not (active and responses):
        yield ForgettingStep(taken=False, loss=None)
        return
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in trained]
    count = sum(len(batch.rows) for batch in responses)
    total = 0.0
    try:
        changes = [torch.zeros_like(parameter) for parameter in trained]
        for batch in responses:
            with torch.enable_grad(), autocast(trained[0].device):
                scored = score(model, batch.to(trained[0].device))
                values = eepo_loss(scored.logps, eps=eps)
                loss = segment_mean(values, scored.row, scored.num_rows).sum() / count
                gradients = torch.autograd.grad(loss, trained, allow_unused=True)
            total += float(loss.detach())
            for change, gradient in zip(changes, gradients, strict=True):
                if gradient is not None:
                    change += gradient
        # Not before every batch has passed: all of them are to see the same weights.
        with torch.no_grad():
            for parameter, change in zip(trained, changes, strict=True):
                parameter.sub_(change, alpha=learning_rate)
        yield ForgettingStep(taken=True, loss=total)
    finally:
        with torch.no_grad():
            for parameter, old in zip(trained, before, strict=True):
                parameter.copy_(old)


class EntropyGate:
    """Says when to forget: while the mean token entropy of the last steps is below a threshold.

    Args:
        threshold: nats (authors: 0.3).
        window: steps in the moving average (authors: 3); closed until so many are known.
    """

    def __init__(self, *, threshold: float = 0.3, window: int = 3) -> None:
        self.threshold = threshold
        self.recent: deque[float] = deque(maxlen=window)

    def __call__(self, entropy: float) -> bool:
        """Take in a step's mean token entropy, in nats; whether to take a forgetting step."""
        self.recent.append(entropy)
        return len(self.recent) == self.recent.maxlen and sum(self.recent) / len(self.recent) < self.threshold
