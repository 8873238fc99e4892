"""Gradient ascent: the negated likelihood loss, with its two milder variants."""

from __future__ import annotations

from torch import Tensor

from expunge.losses.logprobs import normalise


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


def tempered_logps(
    logits: Tensor,  # (N, V)
    targets: Tensor,  # (N,)
    *,
    temperature: float,
) -> Tensor:  # (N,)
    """`log softmax(z_t / T)_y`: ascent on it pushes likely tokens less hard for T > 1.

    Args:
        logits: (N, V).
        targets: (N,) token ids.
        temperature: T > 0.

    Returns:
        (N,) nats, at most 0; not reduced. Its logit gradient is `(e_y - softmax(z / T)) / T`.

    Source:
        Wang et al., Unlearning with Control, arXiv 2406.09179 (`ga_temp` in the authors' code).
    """
    return normalise(logits, targets, temperature=temperature).logp
