"""FLAT: widen an f-divergence between a template answer and the forgotten one, with forget data only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

Divergence = Literal["tv", "kl", "js", "pearson"]


class Variational(NamedTuple):
    """The optimal function of a divergence's variational form, and its conjugate behind it."""

    g: Callable[[Tensor], Tensor]
    """`g*(v)`."""
    conjugate: Callable[[Tensor], Tensor]
    """`f*(g*(v))`."""


def _half_tanh(v: Tensor) -> Tensor:
    return torch.tanh(v) / 2


DIVERGENCES: Mapping[Divergence, Variational] = {
    "tv": Variational(_half_tanh, _half_tanh),
    "kl": Variational(lambda v: v, lambda v: (v - 1).exp()),
    "js": Variational(lambda v: math.log(2) - softplus(-v), lambda v: v + softplus(-v) - math.log(2)),
    "pearson": Variational(lambda v: v, lambda v: v.square() / 4 + v),
}
"""Total variation, Kullback-Leibler, Jensen-Shannon and Pearson's chi squared."""


def flat_loss(
    template_probs: Tensor,  # (B,)
    forget_probs: Tensor,  # (B,)
    *,
    divergence: Divergence,
) -> Tensor:  # (B,)
    """`l_b = -g*(P_e) + f*(g*(P_f))` on arithmetic mean token probabilities of the two answers.

    Args:
        template_probs: (B,) P_e, mean over its tokens of the probability of each template answer, in [0, 1].
        forget_probs: (B,) P_f, the same of each answer to forget.
        divergence: `tv`, `kl`, `js` or `pearson`.

    Returns:
        (B,) per pair; not reduced (published with a mean over pairs). 0 for `tv` where both are equal.

    Source:
        Wang et al., LLM Unlearning via Loss Adjustment with Only Forget Data (FLAT), arXiv 2410.11143.
    """
    form = DIVERGENCES[divergence]
    return form.conjugate(forget_probs) - form.g(template_probs)
