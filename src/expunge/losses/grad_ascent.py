"""Gradient ascent: the negated likelihood loss."""

from __future__ import annotations

from torch import Tensor


def grad_ascent_loss(
    logps: Tensor,  # (N,)
) -> Tensor:  # (N,)
    """`l_t = log p_t`: makes each target less likely, without a bound.

    Args:
        logps: (N,) log-probability of each target, nats.

    Returns:
        (N,) per token, nats, at most 0; not reduced (published with a token mean).

    Source:
        Maini et al., TOFU, arXiv 2401.06121 (gradient ascent).
    """
    return logps
