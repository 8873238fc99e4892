"""From unreduced terms to one scalar per micro-batch, over counts of the whole optimizer step.

Adding the scalars of all micro-batches of a step, on all processes, gives the loss of the logical batch: how it was
cut changes nothing but rounding (except `micro_token_mean`, which exists to reproduce published practice).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from expunge.errors import UsageError
from expunge.losses.segment import segment_mean, segment_sum
from expunge.methods.base import Term


class Counts(NamedTuple):
    """How much of one role there is in an optimizer step (or in one micro-batch, before adding up)."""

    tokens: int
    """Scored positions."""
    rows: int
    """Sequences."""
    micro_batches: int = 1
    """Micro-batches that hold at least one row."""
    answers: int | None = None
    """Scored positions that predict a supervised token; all of them unless said."""

    @property
    def answer_tokens(self) -> int:
        """Scored positions that predict a supervised token."""
        return self.tokens if self.answers is None else self.answers


def counts(parts: Iterable[Counts]) -> Counts:
    """The sum over micro-batches, or over processes; all zero for none."""
    every = list(parts)
    return Counts(
        tokens=sum(part.tokens for part in every),
        rows=sum(part.rows for part in every),
        micro_batches=sum(part.micro_batches for part in every),
        answers=sum(part.answer_tokens for part in every) if any(part.answers is not None for part in every) else None,
    )


def term_loss(
    term: Term,
    *,
    scored_row: Tensor,  # (N,)
    num_rows: int,
    counts: Counts,
    answer: Tensor | None = None,  # (N,) bool
) -> Tensor:
    """This micro-batch's share of a term over the optimizer step, without its weight.

    Formulas, with n, b, m the step's tokens, rows and micro-batches of the role and N the positions here:
        token_mean: `sum_t l_t / n`; seq_sum: `sum_b l_b / b`, where `l_b = sum_t l_t` for unit `token`;
        seq_mean: `sum_b l_b / b`, where `l_b = mean_t l_t` for unit `token`; micro_token_mean: `(sum_t l_t / N) / m`;
        sum: `sum_t l_t`.
    A term over `answer` leaves the other positions out of every sum and count.

    Args:
        term: unreduced values.
        scored_row: (N,) sequence of each scored position, in 0..num_rows-1.
        num_rows: sequences in this micro-batch.
        counts: over the whole step, all processes; a count of 0 (nothing to train on) divides by 1.
        answer: which positions predict a supervised token; None: all of them.

    Returns:
        A scalar; sum it over micro-batches and processes, and multiply by `term.weight` for the objective.

    Raises:
        UsageError: the values do not have the shape of their unit, or a token reduction was asked of sequence values;
            broadcasting would silently train on another objective.
    """
    expected = len(scored_row) if term.unit == "token" else num_rows
    if tuple(term.values.shape) != (expected,):
        raise UsageError(
            f"a term of unit {term.unit!r} has values of shape {tuple(term.values.shape)}, expected ({expected},)",
            hint="a loss returns one value per scored position (token) or per sequence (seq), never reduced",
        )
    values, row, tokens = term.values, scored_row, counts.tokens
    if term.over == "answer":
        tokens = counts.answer_tokens
        if term.unit == "token" and answer is not None:
            values, row = values[answer], row[answer]
    if term.reduction == "sum":
        return values.sum()
    if term.reduction in ("token_mean", "micro_token_mean"):
        if term.unit != "token":
            raise UsageError(
                f"reduction {term.reduction!r} needs values per token, got values per sequence",
                hint="use seq_sum or seq_mean",
            )
        if term.reduction == "token_mean":
            return values.sum() / max(tokens, 1)
        return values.sum() / max(len(row), 1) / max(counts.micro_batches, 1)
    if term.unit == "token":
        values = (segment_sum if term.reduction == "seq_sum" else segment_mean)(values, row, num_rows)
    return values.sum() / max(counts.rows, 1)
