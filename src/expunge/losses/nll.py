"""Negative log-likelihood: what fine-tuning minimises, and the plainest retain term."""

from __future__ import annotations

from torch import Tensor


def nll_loss(
    logps: Tensor,  # (N,)
) -> Tensor:  # (N,)
    """`l_t = -log p_t`: makes each target more likely.

    Args:
        logps: (N,) log-probability of each target, nats.

    Returns:
        (N,) cross entropy per token, nats; not reduced (published with a token mean).
    """
    return -logps
