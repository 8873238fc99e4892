"""SatImp: gradient ascent weighted by saturation (still likely) and importance (not yet certain)."""

from __future__ import annotations

import torch
from torch import Tensor


def satimp_weight(
    logps: Tensor,  # (N,)
    *,
    beta1: float,
    beta2: float,
) -> Tensor:  # (N,)
    """`w_t = p_t^beta1 (1 - p_t)^beta2`, detached, with 0^0 = 1; largest at p = beta1 / (beta1 + beta2).

    Args:
        logps: (N,) log-probability of each target, nats; rounding above 0 is read as p = 1.
        beta1: saturation exponent, >= 0.
        beta2: importance exponent, >= 0.

    Returns:
        (N,) in [0, 1], without gradient, not normalised.
    """
    capped = logps.detach().clamp(max=0)
    # 1 - p as -expm1(log p): exact where p is near 1, which is where the weight of a memorised token is decided.
    return (beta1 * capped).exp() * (-torch.expm1(capped)).pow(beta2)


def satimp_loss(
    logps: Tensor,  # (N,)
    *,
    beta1: float,
    beta2: float,
) -> Tensor:  # (N,)
    """`l_t = sg[p_t^beta1 (1 - p_t)^beta2] log p_t`.

    With beta2 = 0 this is WGA (SimSat), with beta1 = 0 SimImp, with both 0 gradient ascent.

    Args:
        logps: (N,) log-probability of each target, nats.
        beta1: saturation exponent, >= 0.
        beta2: importance exponent, >= 0; at 1 and p = .999 the weight is .001, so memorised tokens hardly start moving.

    Returns:
        (N,) per token, nats, at most 0; not reduced (published with a token mean).

    Source:
        Yang et al., Exploring Criteria of Loss Reweighting, arXiv 2505.11953 (SatImp).
    """
    return satimp_weight(logps, beta1=beta1, beta2=beta2) * logps
