"""PDU's forget loss: flatten the logits until no token stands out."""

from __future__ import annotations

from torch import Tensor

from expunge.losses.logprobs import wide_dtype


def pdu_loss(
    logits: Tensor,  # (N, V), any float dtype
) -> Tensor:  # (N,)
    """`l_t = (max_v z_v - mean_v z_v)^2`: 0 where all logits are equal, unchanged by adding a constant to them.

    Args:
        logits: (N, V).

    Returns:
        (N,) per position, at least 0, float32 (float64 for float64 logits); not reduced (published with a mean over
        positions).

    Source:
        Entesari et al., Constrained Entropic Unlearning: A Primal-Dual Framework, arXiv 2506.05314.
    """
    wide = logits.to(wide_dtype(logits.dtype))
    return (wide.amax(-1) - wide.mean(-1)).square()
