"""NPO: push the forget sequences below the starting model, and ease off once they are there."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def npo_loss(
    logps: Tensor,  # (B,)
    ref_logps: Tensor,  # (B,)
    *,
    beta: float,
) -> Tensor:  # (B,)
    """`l_b = -(2 / beta) log sigmoid(-beta (S_b - S_o,b))`, S = sum of token log-probabilities.

    The gradient is `W_b grad S_b` with `W_b = 2 sigmoid(beta (S_b - S_o,b))`: 1 at the starting model, 0 once the
    sequence is much less likely than it was there. As beta -> 0 it becomes gradient ascent on the sequence sum.

    Args:
        logps: (B,) log-probability of each sequence under the trained model, nats, summed over its tokens.
        ref_logps: (B,) the same under the frozen starting model; no gradient reaches it.
        beta: inverse temperature, > 0.

    Returns:
        (B,) per sequence, at least 0; not reduced (published with a mean over sequences).

    Source:
        Zhang et al., Negative Preference Optimization, arXiv 2404.05868 (the NPO loss).
    """
    return (-2 / beta) * logsigmoid(-beta * (logps - ref_logps.detach()))
