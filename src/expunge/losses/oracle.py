"""Oracle matching: bring a model's logits to those of models that never saw the forget set."""

from __future__ import annotations

import torch
from torch import Tensor

from expunge.losses.kl import kl_loss
from expunge.losses.logprobs import wide_dtype


def centred(logits: Tensor) -> Tensor:
    """Logits minus their mean over the vocabulary: what is left when the constant that changes no probability goes.

    Args:
        logits: (..., V).
    """
    return logits - logits.mean(-1, keepdim=True)


def oracle_mse_loss(
    logits: Tensor,  # (N, V)
    target: Tensor,  # (N, V)
) -> Tensor:  # (N,)
    """`l_t = mean_v (c(z_t)_v - c(f_t)_v)^2`, c the centring over the vocabulary.

    Args:
        logits: (N, V) of the trained model.
        target: (N, V) mean logits of the oracles; no gradient reaches them. A constant added to a row changes nothing.

    Returns:
        (N,) per token, at least 0, in squared nats; not reduced over tokens (published: the mean over rows and
        classes).

    Source:
        Georgiev et al., Attribute-to-Delete, arXiv 2410.23232 (oracle matching). Published for classifiers, where
        logits are compared as they are; a language model's are only determined up to a constant, so ours are centred.
    """
    wide = wide_dtype(torch.promote_types(logits.dtype, target.dtype))
    difference = centred(logits.to(wide)) - centred(target.detach().to(wide))
    return difference.square().mean(-1)


def oracle_kl_loss(
    logits: Tensor,  # (N, V)
    target: Tensor,  # (N, V)
) -> Tensor:  # (N,)
    """`l_t = KL(softmax(f_t) || softmax(z_t))`: the same match, weighted by what the oracles find likely.

    Args:
        logits: (N, V) of the trained model.
        target: (N, V) mean logits of the oracles; no gradient reaches them.

    Returns:
        (N,) per token, nats, at least 0; not reduced.
    """
    return kl_loss(logits, target.detach())
