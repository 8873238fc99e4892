"""CE-U: cross-entropy to the model's own distribution without the forgotten token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from expunge.losses.logprobs import rows_per_chunk, wide_dtype


class _CEU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        wide = wide_dtype(logits.dtype)
        values = torch.empty(logits.shape[0], dtype=wide, device=logits.device)
        step = rows_per_chunk(logits)
        for start in range(0, logits.shape[0], step):
            current = logits[start : start + step].to(wide)
            label = _without(current, targets[start : start + step])
            values[start : start + step] = current.logsumexp(-1) - torch.linalg.vecdot(label, current)
        ctx.save_for_backward(logits, targets)
        ctx.wide = wide
        return values

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        logits, targets = ctx.saved_tensors
        grad = torch.empty_like(logits)
        step = rows_per_chunk(logits)
        for start in range(0, logits.shape[0], step):
            part = slice(start, start + step)
            current = logits[part].to(ctx.wide)
            # The label is a constant, also to a second derivative.
            residual = current.softmax(-1) - _without(current.detach(), targets[part])
            grad[part] = (residual * upstream[part, None]).to(grad.dtype)
        return grad, None


def _without(current: Tensor, targets: Tensor) -> Tensor:
    """softmax with the target's logit at minus infinity."""
    return current.scatter(-1, targets[:, None], -torch.inf).softmax(-1)


def ceu_loss(
    logits: Tensor,  # (N, V), any float dtype
    targets: Tensor,  # (N,) int64
) -> Tensor:  # (N,)
    """`l_t = -sum_v t_v log q_v` with `t = softmax(z, z_y at -inf)`, detached.

    `l_t = H(t) - log(1 - p_t)`, and its gradient by the logits is that of `-log(1 - p_t)`: p_t at the target,
    `-q_v p_t / (1 - p_t)` elsewhere. It vanishes as the target is forgotten, and stays finite where p rounds to 1.

    Args:
        logits: (N, V), V at least 2.
        targets: (N,) token ids.

    Returns:
        (N,) per token, nats, at least 0, float32 (float64 for float64 logits); not reduced (published with a mean over
        the tokens of the batch, without the first of each answer).

    Source:
        Yang, CE-U: Cross Entropy Unlearning, arXiv 2503.01224.
    """
    values: Tensor = _CEU.apply(logits, targets)  # type: ignore[no-untyped-call]
    return values
