"""EEPO's forgetting loss: makes a sampled response less likely, with a gradient that stays bounded."""

from __future__ import annotations

import torch
from torch import Tensor


def eepo_loss(
    logps: Tensor,  # (N,)
    *,
    eps: float = 1e-6,
) -> Tensor:  # (N,)
    """`l_t = -log(1 - min(p_t, 1 - eps))`: large where a token is certain; to be descended.

    The gradient by the target's logit is p, by any other `-q_v p / (1 - p)`: CE-U's. A token with `p_t > 1 - eps` has
    none. The printed text says ascent on this loss, which would make the response more likely; descent suppresses it.

    Args:
        logps: (N,) log-probability of each target, nats.
        eps: in (0, 1), keeps the logarithm finite.

    Returns:
        (N,) per token, nats, in [0, -log eps]; not reduced (published with a mean per response, then over responses).

    Source:
        Chen et al., EEPO, arXiv 2510.05837; sign and eps are reconstructed.
    """
    # 1 - p without the cancellation that exp would bring for a token that is nearly certain.
    return -torch.log(torch.clamp(-torch.expm1(logps), min=eps))
