"""Micro-batches for a method without a model: random logits, and a starting model's answers made from other ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from expunge.losses.eua import eua_margins
from expunge.methods.base import Context, Method
from expunge.models.reference import Reference, ReferenceValues
from expunge.models.score import Scored

OWN: Mapping[str, Callable[[Scored], Tensor]] = {
    "oracle_logits": lambda other: other.logits.detach(),
    "whp_labels": lambda other: other.logits.detach().argmax(-1),
    "unstar_live": lambda other: torch.ones(len(other.row)),
    "forgetting_positive": lambda other: other.targets % 2 == 0,
}
"""Tables that methods make themselves, from the answers of another model."""
WIDTH = 5
"""Of hidden states."""


def random_scored(
    lengths: Sequence[int], *, vocab: int = 11, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Scored:
    """A micro-batch of sequences of `lengths` scored positions; the logits are a leaf that takes gradients."""
    generator = torch.Generator().manual_seed(seed)
    size = sum(lengths)
    logits = 2 * torch.randn(size, vocab, generator=generator, dtype=torch.float64)
    return Scored(
        distribution=logits.to(dtype).requires_grad_(),
        targets=torch.randint(vocab, (size,), generator=generator),
        row=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.int64)),
        num_rows=len(lengths),
    )


def make_context(
    method: Method,
    role: str,
    *,
    lengths: Sequence[int] = (3, 1, 4),
    vocab: int = 11,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    frozen: Tensor | None = None,
) -> Context:
    """A micro-batch of `role` with everything `method` declares it reads.

    Args:
        method: says what it needs.
        role: dataset of the micro-batch.
        lengths: scored positions of each sequence; linked rows get one more each.
        vocab: logit width.
        seed: of logits and targets; a linked dataset and the starting model draw their own.
        dtype: of the logits.
        frozen: (N, V) logits of the starting model; random unless given.
    """
    needs = method.needs()
    linked = [name for name, anchor in needs.linked.items() if anchor == role]
    scored = random_scored(lengths, vocab=vocab, seed=seed, dtype=dtype)
    logits = random_scored(lengths, vocab=vocab, seed=seed + 1000, dtype=dtype).logits if frozen is None else frozen
    starting = replace(scored, distribution=logits)
    if role in needs.hidden:
        starting = replace(starting, hidden=_states(len(scored.row), seed + 2000, dtype))
        scored = replace(scored, hidden=_states(len(scored.row), seed, dtype).requires_grad_())
    if needs.truncate:
        scored = replace(scored, distribution=scored.logits[:, :0])
    context = Context(
        role=role,
        scores=None if role in needs.unscored else scored,
        ref=reference_values(starting, needs.references.get(role, ()))._replace(
            own={name: make(starting) for name, make in OWN.items()}
        ),
        constants={"control": torch.ones(WIDTH)},
        linked={
            name: make_context(
                method, name, lengths=[n + 1 for n in lengths], vocab=vocab, seed=seed + 1 + place, dtype=dtype
            )
            for place, name in enumerate(linked)
        },
    )
    if needs.totals is None:
        return context
    # One micro-batch of one role is the whole step.
    totals = {name: float(value) for name, value in method.totals(context).items()}
    return replace(context, totals=totals)


def _states(rows: int, seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64).to(dtype)


def reference_values(starting: Scored, asked: Sequence[Reference]) -> ReferenceValues:
    """What was asked of the starting model, read off its logits, and nothing else."""
    values: dict[str, Any] = {}
    for item in asked:
        if item.kind == "seq_logp":
            values["seq_logp"] = starting.seq_logps
        elif item.kind == "token_logp":
            values["token_logp"] = starting.logps
        elif item.kind == "hidden":
            values["distribution"] = starting.logits
        elif item.kind == "block":
            values["block"] = starting.hidden
        else:
            values["eua_margin"] = eua_margins(
                starting.logits,
                ratio=item.ratio,
                temperature=item.temperature,
                fill=item.fill,
                leading_temperature=item.leading_temperature,
            )
    return ReferenceValues(**values)
