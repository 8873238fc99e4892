"""ALKN: memorise the forget set a little more, with soft labels that ask little of what is hardly known."""

from __future__ import annotations

import torch
from torch import Tensor

MIDPOINT = 0.8
"""Where the soft label rises fastest in the starting probability (the authors' code)."""


def alkn_soft_label(
    ref_logps: Tensor,  # (N,)
    *,
    k: float,
) -> Tensor:  # (N,)
    """`s_t = min(1, sigmoid(k (p0_t - 0.8)) - sigmoid(-0.8 k))`, p0 the starting model's probability of the target.

    Args:
        ref_logps: (N,) log-probability of each target under the frozen starting model, nats.
        k: steepness, > 0. At 1.5: s(0) = 0, s(0.5) = 0.158, s(1) = 0.343; at 10: 0, 0.047, 0.880.

    Returns:
        (N,) in [0, 1), without gradient; 0 for a target the starting model gives no probability.
    """
    p0 = ref_logps.detach().exp()
    floor = torch.sigmoid(torch.tensor(-MIDPOINT * k, dtype=p0.dtype, device=p0.device))
    return (torch.sigmoid(k * (p0 - MIDPOINT)) - floor).clamp(max=1)


def alkn_loss(
    logps: Tensor,  # (N,)
    ref_logps: Tensor,  # (N,)
    *,
    k: float,
) -> Tensor:  # (N,)
    """`l_t = -s_t log p_t` with the soft label of `alkn_soft_label`: a memorisation loss, to be negated as weights.

    The "label" has one entry and does not sum to 1, so this is cross-entropy weighted by token.

    Args:
        logps: (N,) log-probability of each target under the trained model, nats.
        ref_logps: (N,) the same under the frozen starting model; no gradient reaches it.
        k: see `alkn_soft_label`.

    Returns:
        (N,) per token, nats, at least 0; not reduced (published with a token mean, not divided by the sum of s).

    Source:
        Wuerkaixi et al., Adaptive Localization of Knowledge Negation for Continual LLM Unlearning, ICML 2025, as in
        the authors' code (zaocan666/ALKN).
    """
    return -alkn_soft_label(ref_logps, k=k) * logps
