"""UNDIAL: distil the starting model with the forgotten token's logit lowered."""

from __future__ import annotations

import torch
from torch import Tensor

from expunge.losses.kl import kl_loss
from expunge.losses.logprobs import rows_per_chunk, wide_dtype


def undial_loss(
    logits: Tensor,  # (N, V), any float dtype
    ref_logits: Tensor,  # (N, V), any float dtype
    targets: Tensor,  # (N,) int64
    *,
    beta: float,
) -> Tensor:  # (N,)
    """`l_t = -sum_v s_v log q_v` with `s = softmax(z_o - beta e_y)`: cross-entropy to the adjusted teacher.

    The gradient by the logits is `q - s`. With beta = 0 the teacher is the starting model itself, where nothing moves;
    as beta grows no mass is left on the target, as in CE-U. The smallest value is the entropy of s, not 0.

    Args:
        logits: (N, V) of the trained model.
        ref_logits: (N, V) of the frozen starting model at the same positions; no gradient reaches it.
        targets: (N,) token ids, whose logits are lowered.
        beta: how far, in units of logits, >= 0.

    Returns:
        (N,) per token, nats, at least 0, float32 (float64 for float64 logits); not reduced (published with a mean over
        tokens).

    Source:
        Dong et al., UNDIAL, arXiv 2402.10052.
    """
    teacher = ref_logits.detach().clone()
    teacher.scatter_add_(-1, targets[:, None], torch.full_like(teacher[:, :1], -beta))
    return kl_loss(logits, teacher) + entropy(teacher)


@torch.no_grad()
def entropy(
    logits: Tensor,  # (N, V)
) -> Tensor:  # (N,)
    """`H(softmax(z))` per position, nats, in chunks; without gradient, not reduced."""
    values = torch.empty(logits.shape[0], dtype=wide_dtype(logits.dtype), device=logits.device)
    step = rows_per_chunk(logits)
    for start in range(0, logits.shape[0], step):
        logps = logits[start : start + step].to(values.dtype).log_softmax(-1)
        values[start : start + step] = -torch.linalg.vecdot(logps.exp(), logps)
    return values
