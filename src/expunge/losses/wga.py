"""WGA: gradient ascent weighted by how likely each token still is."""

from __future__ import annotations

from torch import Tensor


def wga_loss(
    logps: Tensor,  # (N,)
    *,
    beta: float,
) -> Tensor:  # (N,)
    """`l_t = sg[p_t^beta] log p_t`: tokens that are already forgotten stop being pushed.

    The weight is detached, so the logit gradient is `p^beta (e_y - softmax(z))`, not the derivative of `p^beta log p`.

    Args:
        logps: (N,) log-probability of each target, nats.
        beta: exponent of the weight, >= 0; 0 is gradient ascent.

    Returns:
        (N,) per token, nats, in [-1 / (e beta), 0]; not reduced (published with a token mean, not divided by the
        sum of weights).

    Source:
        Wang et al., Rethinking LLM Unlearning Objectives, arXiv 2502.19301 (weighted gradient ascent).
    """
    return (beta * logps.detach()).exp() * logps
