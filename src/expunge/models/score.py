"""One forward pass on the flat layout: what the model says at the positions asked for, and what follows from it.

`logits_to_keep` takes a boolean (batch, seq) mask (transformers 5.21 and newer), so no vocabulary-sized tensor is ever
made for a prompt or padding position and nothing past the collator knows about shifts, -100 or padding. Where the
logits of the scored positions would still be large, the states before the head are kept in their place, and
quantities are computed from a few positions at a time (`expunge.models.chunks`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from expunge.losses.logprobs import Normalised, normalise
from expunge.losses.segment import segment_sum
from expunge.models.blocks import block
from expunge.models.chunks import LogitsChunk, Rows, T, chunk_of, per_position
from expunge.models.head import Finish, Projected, kept_states, projection
from expunge.models.load import vocabulary_size

if TYPE_CHECKING:
    from expunge.data.collate import Batch


@dataclass(frozen=True)
class Scored:
    """What a model says at the scored positions of a micro-batch, and the quantities losses are written on."""

    distribution: Tensor | Projected
    """(N, V) logits in the model's dtype, made or to be made; read through `per_position`."""
    targets: Tensor  # (N,) token that each position predicts
    row: Tensor  # (N,) sequence of each position, 0..num_rows-1
    num_rows: int
    answer: Tensor | None = None  # (N,) bool, the position predicts a supervised token; None: all do
    hidden: Tensor | None = None  # (N, d) output of the block that was asked for

    def per_position(self, quantity: Callable[..., T], *values: Rows) -> T:
        """`quantity(logits, targets, *values)` at every position, without holding all logits where they are large.

        Args:
            quantity: of (n, V) logits, (n,) targets and the same n positions of every value; gives (n, ...) tensors,
                one or a tuple, in which no position depends on another.
            values: (N, ...), constants: no gradient reaches them.

        Returns:
            (N, ...) of every result, differentiable by the model's parameters.
        """
        return per_position(quantity, self.distribution, self.targets, *values)

    @cached_property
    def logits(self) -> Tensor:
        """(N, V) all logits at once; `per_position` needs less memory."""
        return self.distribution if isinstance(self.distribution, Tensor) else self.distribution[:]

    @property
    def vocab(self) -> int:
        """V, width of the logits."""
        held = self.distribution
        return held.shape[-1] if isinstance(held, Tensor) else held.vocab

    @cached_property
    def _normalised(self) -> Normalised:
        return self.per_position(normalise)

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
        return self.per_position(partial(normalise, temperature=temperature)).lse

    @cached_property
    def seq_logps(self) -> Tensor:
        """(B,) sum of `logps` over each sequence."""
        return segment_sum(self.logps, self.row, self.num_rows)

    @cached_property
    def seq_lengths(self) -> Tensor:
        """(B,) number of scored positions of each sequence."""
        return self.row.bincount(minlength=self.num_rows)


def score(
    model: Any,
    batch: Batch,
    *,
    hidden: int | None = None,
    truncate: bool = False,
    logits_chunk: LogitsChunk = "auto",
) -> Scored:
    """Run `model` on `batch` and keep what it says at `batch.predict_mask` only.

    Rows are padded on the right and attention is causal, so no real token can see a pad and no mask is passed: that
    leaves the attention kernels their causal fast path.

    Args:
        model: a causal LM, or its wrapper for several processes.
        batch: the micro-batch.
        hidden: index of the transformer block whose output is kept at the same positions.
        truncate: end the forward after that block; `logits` is then (N, 0). Not for a wrapper, whose forward must end.
        logits_chunk: positions whose logits exist at one time; changes memory and time, the result by rounding only.
            A model whose logits cannot be made from its last states (`expunge.models.head.projection`) gives all.

    Raises:
        UsageError: the model has no such block.
    """
    # A model is examined by a forward of its own, which no hook below may see.
    chunking = _chunking(model, batch, None if truncate else logits_chunk)
    if hidden is None:
        return _scored(batch, _distribution(model, batch, chunking))
    seen: list[Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        seen.append(states[batch.predict_mask])
        if truncate:
            raise _EndOfForwardError

    handle = block(getattr(model, "module", model), hidden).register_forward_hook(keep)
    distribution: Tensor | Projected
    try:
        distribution = _distribution(model, batch, chunking)
    except _EndOfForwardError:
        distribution = seen[0].new_empty(len(seen[0]), 0)
    finally:
        handle.remove()
    return _scored(batch, distribution, seen[0])


def obstacle(model: Any, logits_chunk: LogitsChunk, *, count: int, together: bool = False) -> str:
    """Why `score` gives all logits of `count` positions at once although they are asked for in chunks; else empty.

    Args:
        model: not the wrapper for several processes.
        logits_chunk: see `score`.
        count: positions of a micro-batch, at most.
        together: every process asks now, so that none has to ask the others in the midst of a step.
    """
    device = next(model.parameters()).device
    chunk = chunk_of(logits_chunk, count=count, vocab=vocabulary_size(model), device=device)
    found = projection(model).obstacle if chunk is not None or (together and logits_chunk is not None) else ""
    return found if chunk is not None else ""


class _EndOfForwardError(Exception):
    """Everything that was asked for has been computed."""


class _Chunking(NamedTuple):
    step: int
    finish: Finish


def _chunking(model: Any, batch: Batch, logits_chunk: LogitsChunk) -> _Chunking | None:
    """How the logits of a batch are made in chunks; None: all at once."""
    inner = getattr(model, "module", model)
    step = chunk_of(logits_chunk, count=len(batch.targets), vocab=vocabulary_size(inner), device=batch.targets.device)
    if step is None or (way := projection(inner)).obstacle:
        return None
    return _Chunking(step, way.finish)


def _distribution(model: Any, batch: Batch, chunking: _Chunking | None) -> Tensor | Projected:
    """Logits, or the states they can be made of."""
    if chunking is None:
        return _logits(model, batch)
    with kept_states(getattr(model, "module", model), chunking.finish, step=chunking.step) as kept:
        _logits(model, batch)
    return kept[0]


def _logits(model: Any, batch: Batch) -> Tensor:
    logits: Tensor = model(input_ids=batch.input_ids, logits_to_keep=batch.predict_mask, use_cache=False).logits
    return logits


def _scored(batch: Batch, distribution: Tensor | Projected, hidden: Tensor | None = None) -> Scored:
    return Scored(
        distribution=distribution,
        targets=batch.targets,
        row=batch.row,
        num_rows=len(batch.rows),
        answer=batch.answer,
        hidden=hidden,
    )
