"""WTNPO: token-wise NPO that also leaves alone what is already unlikely."""

from __future__ import annotations

from torch import Tensor

from expunge.losses.tnpo import tnpo_weight


def wtnpo_loss(
    logps: Tensor,  # (N,)
    ref_logps: Tensor,  # (N,)
    *,
    beta: float,
    exponent: float,
    eps: float = 0.0,
) -> Tensor:  # (N,)
    """`l_t = sg[2 p_t^(beta + a) / (p_t^beta + r_t^beta + eps)] log p_t`, a = `exponent`: TNPO's weight times p_t^a.

    At a = 0 it is TNPO; as beta -> 0 it is WGA with exponent a.

    Args:
        logps: (N,) log-probability of each target under the trained model, nats.
        ref_logps: (N,) the same under the frozen starting model; no gradient reaches it.
        beta: inverse temperature, > 0.
        exponent: of the probability, >= 0.
        eps: see `tnpo_weight`.

    Returns:
        (N,) per token, nats, at most 0; not reduced (published with a token mean).

    Source:
        Wang et al., Rethinking LLM Unlearning Objectives, arXiv 2502.19301 (weighted token-wise NPO).
    """
    weight = tnpo_weight(logps, ref_logps, beta=beta, eps=eps) * (exponent * logps.detach()).exp()
    return weight * logps
