"""SimNPO: NPO on the length-normalised likelihood, without a reference model."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def simnpo_loss(
    logps: Tensor,  # (B,)
    lengths: Tensor,  # (B,)
    *,
    beta: float,
    delta: float = 0.0,
) -> Tensor:  # (B,)
    """`l_b = -(2 / beta) log sigmoid(beta (-S_b / T_b - delta))`, S = sum of token log-probabilities.

    Args:
        logps: (B,) log-probability of each sequence, nats, summed over its tokens.
        lengths: (B,) number T of summed tokens; a sequence without any gets a constant, never NaN.
        beta: inverse temperature, > 0.
        delta: reward margin in nats per token, inside the beta bracket as in the authors' code (called gamma there);
            a margin printed outside the bracket is `beta * delta`.

    Returns:
        (B,) per sequence, at least 0; not reduced (published with a mean over sequences).

    Source:
        Fan et al., Simplicity Prevails, arXiv 2410.07163 (the SimNPO loss).
    """
    mean_nll = -logps / lengths.clamp(min=1)
    return (-2 / beta) * logsigmoid(beta * (mean_nll - delta))
