"""One forward pass on the flat layout: (N, vocab) logits for the positions asked for, and what follows from them.

`logits_to_keep` takes a boolean (batch, seq) mask (transformers 5.21 and newer), so no vocabulary-sized tensor is ever
made for a prompt or padding position and nothing past the collator knows about shifts, -100 or padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor

from expunge.losses.logprobs import Normalised, normalise
from expunge.losses.segment import segment_sum
from expunge.models.blocks import block

if TYPE_CHECKING:
    from expunge.data.collate import Batch


@dataclass(frozen=True)
class Scored:
    """Logits of the scored positions of a micro-batch and the quantities losses are written on."""

    logits: Tensor  # (N, V), the model's dtype
    targets: Tensor  # (N,) token that each position predicts
    row: Tensor  # (N,) sequence of each position, 0..num_rows-1
    num_rows: int
    answer: Tensor | None = None  # (N,) bool, the position predicts a supervised token; None: all do
    hidden: Tensor | None = None  # (N, d) output of the block that was asked for

    @cached_property
    def _normalised(self) -> Normalised:
        return normalise(self.logits, self.targets)

    @property
    def lse(self) -> Tensor:
        """(N,) log-sum-exp of the logits, in float32 or wider; the negative energy at temperature 1."""
        return self._normalised.lse

    @property
    def logps(self) -> Tensor:
        """(N,) log-probability of each target in nats."""
        return self._normalised.logp

    def scaled_lse(self, temperature: float) -> Tensor:
        """(N,) `logsumexp(z / T)`; at T = 1 the one the log-probabilities already share."""
        if temperature == 1:
            return self.lse
        return normalise(self.logits, self.targets, temperature=temperature).lse

    @cached_property
    def seq_logps(self) -> Tensor:
        """(B,) sum of `logps` over each sequence."""
        return segment_sum(self.logps, self.row, self.num_rows)

    @cached_property
    def seq_lengths(self) -> Tensor:
        """(B,) number of scored positions of each sequence."""
        return self.row.bincount(minlength=self.num_rows)


def score(model: Any, batch: Batch, *, hidden: int | None = None, truncate: bool = False) -> Scored:
    """Run `model` on `batch` and keep the logits of `batch.predict_mask` only.

    Rows are padded on the right and attention is causal, so no real token can see a pad and no mask is passed: that
    leaves the attention kernels their causal fast path.

    Args:
        model: a causal LM, or its wrapper for several processes.
        batch: the micro-batch.
        hidden: index of the transformer block whose output is kept at the same positions.
        truncate: end the forward after that block; `logits` is then (N, 0). Not for a wrapper, whose forward must end.

    Raises:
        UsageError: the model has no such block.
    """
    if hidden is None:
        return _scored(batch, _logits(model, batch))
    seen: list[Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        seen.append(states[batch.predict_mask])
        if truncate:
            raise _EndOfForwardError

    handle = block(getattr(model, "module", model), hidden).register_forward_hook(keep)
    try:
        logits = _logits(model, batch)
    except _EndOfForwardError:
        logits = seen[0].new_empty(len(seen[0]), 0)
    finally:
        handle.remove()
    return _scored(batch, logits, seen[0])


class _EndOfForwardError(Exception):
    """Everything that was asked for has been computed."""


def _logits(model: Any, batch: Batch) -> Tensor:
    logits: Tensor = model(input_ids=batch.input_ids, logits_to_keep=batch.predict_mask, use_cache=False).logits
    return logits


def _scored(batch: Batch, logits: Tensor, hidden: Tensor | None = None) -> Scored:
    return Scored(
        logits=logits,
        targets=batch.targets,
        row=batch.row,
        num_rows=len(batch.rows),
        answer=batch.answer,
        hidden=hidden,
    )
