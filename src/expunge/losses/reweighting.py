"""Choosing and averaging token weights inside each sequence: what granularities of reweighted ascent are made of."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from expunge.losses.segment import segment_mean


class _Ranks(NamedTuple):
    """Where each token stands in its own sequence."""

    rank: Tensor
    """(N,) 0 for the smallest value of its sequence; equal values in their order."""
    length: Tensor
    """(N,) tokens of its sequence."""
    ordered: Tensor
    """(N,) the values, sequence after sequence and ascending inside each."""
    start: Tensor
    """(N,) where its sequence begins in `ordered`."""


def _ranks(values: Tensor, row: Tensor, num_rows: int) -> _Ranks:
    by_value = values.argsort(stable=True)
    order = by_value[row[by_value].argsort(stable=True)]
    counts = row.bincount(minlength=num_rows)
    start = (counts.cumsum(0) - counts)[row]
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    return _Ranks(place - start, counts[row], values[order], start)


def weighted_ascent_loss(
    logps: Tensor,  # (N,)
    weights: Tensor,  # (N,) or ()
) -> Tensor:  # (N,)
    """`l = sg[w] log p`: ascent with weights that take no gradient and are not normalised.

    Args:
        logps: (N,) log-probability of each target, or of each sequence, nats.
        weights: one for each, or one for all.

    Returns:
        (N,) nats; not reduced.

    Source:
        Yang et al., Exploring Criteria of Loss Reweighting, arXiv 2505.11953.
    """
    return weights.detach() * logps


@torch.no_grad()
def group_means(
    weights: Tensor,  # (N,)
    row: Tensor,  # (N,)
    num_rows: int,
    *,
    size: int,
) -> Tensor:  # (N,)
    """Each weight replaced by the mean of its group: `size` neighbours in the descending order of its sequence.

    The last group of a sequence may be smaller. At size 1 nothing changes; from the longest sequence on, each token
    gets its sequence's mean weight.

    Args:
        weights: (N,) one per token.
        row: (N,) sequence of each token, in 0..num_rows-1.
        num_rows: sequences.
        size: tokens of a group, at least 1.

    Returns:
        (N,) without gradient.

    Source:
        Yang et al., Exploring Criteria of Loss Reweighting, arXiv 2505.11953 (group-wise granularity).
    """
    ranks = _ranks(-weights, row, num_rows)
    groups = len(weights) // size + 1
    number = row * groups + ranks.rank // size
    return segment_mean(weights, number, num_rows * groups)[number]


@torch.no_grad()
def beyond_quantile(
    values: Tensor,  # (N,)
    row: Tensor,  # (N,)
    num_rows: int,
    *,
    quantile: float,
    above: bool,
) -> Tensor:  # (N,) bool
    """Tokens strictly above (or below) a quantile of their own sequence, interpolated linearly between its values.

    Strictly: above quantile 0 are all but the smallest, and of a sequence of equal values none.

    Args:
        values: (N,) one per token.
        row: (N,) sequence of each token, in 0..num_rows-1.
        num_rows: sequences.
        quantile: in [0, 1].
        above: which side.

    Source:
        Yang et al., Exploring Criteria of Loss Reweighting, arXiv 2505.11953 (hard sampling in the authors' code).
    """
    if not len(values):
        return torch.zeros_like(values, dtype=torch.bool)
    ranks = _ranks(values, row, num_rows)
    place = quantile * (ranks.length - 1).to(torch.float64)
    low = place.floor()
    below, beside = (ranks.ordered[ranks.start + at.long()] for at in (low, place.ceil()))
    threshold = torch.lerp(below, beside, (place - low).to(values.dtype))
    return values > threshold if above else values < threshold


@torch.no_grad()
def lowest(
    values: Tensor,  # (N,)
    row: Tensor,  # (N,)
    num_rows: int,
    *,
    fraction: float,
) -> Tensor:  # (N,) bool
    """The `kept_count` tokens with the smallest values of each sequence; among equal ones the first.

    Args:
        values: (N,) one per token.
        row: (N,) sequence of each token, in 0..num_rows-1.
        num_rows: sequences.
        fraction: share of each sequence, in (0, 1].
    """
    ranks = _ranks(values, row, num_rows)
    return ranks.rank < kept_count(ranks.length, fraction=fraction)


def kept_count(length: Tensor, *, fraction: float) -> Tensor:
    """`max(1, floor(fraction T))` of every length T: how many tokens of a sequence a fraction is."""
    # A product such as 0.29 * 100 = 28.999... is meant to be 29.
    return (fraction * length.double() + 1e-9).floor().long().clamp(min=1)
