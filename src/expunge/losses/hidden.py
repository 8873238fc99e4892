"""Distance of hidden states from the frozen starting model: keep what a block computes, not only what is said."""

from __future__ import annotations

import torch
from torch import Tensor

from expunge.losses.logprobs import wide_dtype


def hidden_distance_loss(
    hidden: Tensor,  # (N, d)
    ref_hidden: Tensor,  # (N, d) or (d,)
) -> Tensor:  # (N,)
    """`l_t = ||h_t - h_o,t||^2 / d`.

    Args:
        hidden: (N, d) output of one transformer block of the trained model.
        ref_hidden: (N, d) the same of the starting model, or one (d,) vector for all; no gradient reaches it.

    Returns:
        (N,) per position, at least 0, float32 (float64 for float64 states); not reduced (published with a mean over
        each sequence, then over sequences).

    Source:
        Li et al., The WMDP Benchmark, arXiv 2403.03218 (RMU's retain loss).
    """
    wide = wide_dtype(torch.promote_types(hidden.dtype, ref_hidden.dtype))
    return (hidden.to(wide) - ref_hidden.detach().to(wide)).square().mean(-1)


def mean_inverse_length(
    row: Tensor,  # (N,) int64
    num_rows: int,
) -> Tensor:  # ()
    """`mean_b 1 / N_b`, what OpenUnlearning divides by in the place of each sequence's own length.

    It divides (B,) sums by a (B, 1) count, which broadcasts to (B, B), so its sequence mean is
    `mean_b(S_b) mean_b(1 / N_b)`: ours where all N_b are equal.

    Args:
        row: (N,) sequence of each position, in 0..num_rows-1.
        num_rows: sequences; one without positions counts as having one.
    """
    return row.bincount(minlength=num_rows).clamp(min=1).double().reciprocal().mean()
