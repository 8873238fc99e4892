"""TNPO: NPO token by token, each token eased off once it is less likely than it was in the starting model."""

from __future__ import annotations

import torch
from torch import Tensor

PUBLISHED_EPS = 1e-5
"""What the authors' code adds to the weight's denominator."""


def tnpo_weight(
    logps: Tensor,  # (N,)
    ref_logps: Tensor,  # (N,)
    *,
    beta: float,
    eps: float = 0.0,
) -> Tensor:  # (N,)
    """`w_t = 2 p_t^beta / (p_t^beta + r_t^beta + eps)`, detached; `2 sigmoid(beta (log p_t - log r_t))` at eps = 0.

    Args:
        logps: (N,) log-probability of each target under the trained model, nats.
        ref_logps: (N,) the same under the frozen starting model.
        beta: inverse temperature, > 0.
        eps: added to the denominator, >= 0; an absolute constant beside powers of small numbers: at beta = 4 and
            p = r = 0.05 the published 1e-5 makes the weight 0.56 where it should be 1.

    Returns:
        (N,) in [0, 2], without gradient; 1 where nothing has changed yet.
    """
    ours, theirs = logps.detach(), ref_logps.detach()
    if eps == 0:
        return 2 * torch.sigmoid(beta * (ours - theirs))
    power = (beta * ours).exp()
    return 2 * power / (power + (beta * theirs).exp() + eps)


def tnpo_loss(
    logps: Tensor,  # (N,)
    ref_logps: Tensor,  # (N,)
    *,
    beta: float,
    eps: float = 0.0,
) -> Tensor:  # (N,)
    """`l_t = sg[w_t] log p_t` with the weight of `tnpo_weight`.

    At eps = 0 its gradient is that of `(2 / beta) log(1 + (p_t / r_t)^beta)`: NPO on every token by itself. At the
    starting model it is the gradient of ascent.

    Args:
        logps: (N,) log-probability of each target under the trained model, nats.
        ref_logps: (N,) the same under the frozen starting model; no gradient reaches it.
        beta: inverse temperature, > 0.
        eps: see `tnpo_weight`.

    Returns:
        (N,) per token, nats, at most 0; not reduced (published with a token mean, not divided by the sum of weights).

    Source:
        Wang et al., Rethinking LLM Unlearning Objectives, arXiv 2502.19301 (token-wise NPO).
    """
    return tnpo_weight(logps, ref_logps, beta=beta, eps=eps) * logps
