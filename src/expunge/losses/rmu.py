"""RMU: drive the hidden states of forget answers to one random direction."""

from __future__ import annotations

import torch
from torch import Tensor

from expunge.errors import UsageError
from expunge.losses.hidden import hidden_distance_loss


def control_vector(width: int, *, coefficient: float, seed: int) -> Tensor:
    """`v = c u / ||u||` with `u ~ Uniform[0, 1)^d`, drawn once.

    Args:
        width: d, the width of a hidden state, at least 1.
        coefficient: c > 0, the length of v; it must exceed that of the hidden states it is to replace.
        seed: of u.

    Returns:
        (d,) float32.

    Raises:
        UsageError: a width or coefficient that is not positive.

    Source:
        Li et al., The WMDP Benchmark, arXiv 2403.03218 (RMU).
    """
    if width < 1 or coefficient <= 0:
        raise UsageError(f"a control vector of {width} entries and length {coefficient}", hint="both must be positive")
    drawn = torch.rand(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    vector: Tensor = coefficient * drawn / drawn.norm()
    return vector.float()


def rmu_loss(
    hidden: Tensor,  # (N, d)
    control: Tensor,  # (d,)
) -> Tensor:  # (N,)
    """`l_t = ||h_t - v||^2 / d`.

    Args:
        hidden: (N, d) output of one transformer block of the trained model at the positions that hold an answer token.
        control: (d,) from `control_vector`; no gradient reaches it.

    Returns:
        (N,) per position, at least 0; not reduced (published with a mean over each sequence, then over sequences).

    Source:
        Li et al., The WMDP Benchmark, arXiv 2403.03218 (RMU).
    """
    return hidden_distance_loss(hidden, control)
