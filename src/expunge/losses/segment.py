"""Sums over the tokens of each sequence, on the flat layout."""

from __future__ import annotations

import torch
from torch import Tensor


def segment_sum(
    values: Tensor,  # (N,)
    row: Tensor,  # (N,) int64, sequence of each token, in 0..num_rows-1
    num_rows: int,
) -> Tensor:  # (num_rows,)
    """Sum `values` per sequence; a sequence without tokens gets 0. Not reduced over sequences."""
    return torch.zeros(num_rows, dtype=values.dtype, device=values.device).index_add(0, row, values)


def segment_mean(
    values: Tensor,  # (N,)
    row: Tensor,  # (N,)
    num_rows: int,
) -> Tensor:  # (num_rows,)
    """Mean of `values` per sequence; a sequence without tokens gets 0 (it carries no loss), never NaN."""
    count = torch.bincount(row, minlength=num_rows).clamp(min=1)
    return segment_sum(values, row, num_rows) / count
