"""BS-T: ascent on a soft label that also names the model's own beliefs, so that mass does not slide into paraphrases.

As in `losses/kl.py` the softmax is made chunk by chunk, in the forward and again in the backward; what is kept between
them is k numbers per position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from expunge.errors import UsageError
from expunge.losses.logprobs import rows_per_chunk, wide_dtype


class _SoftAscent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, share: float, k: int) -> Tensor:
        wide = wide_dtype(logits.dtype)
        values = torch.empty(logits.shape[0], dtype=wide, device=logits.device)
        lse = torch.empty_like(values)
        beliefs = torch.empty(logits.shape[0], k, dtype=wide, device=logits.device)
        places = torch.empty(logits.shape[0], k, dtype=torch.int64, device=logits.device)
        step = rows_per_chunk(logits)
        for start in range(0, logits.shape[0], step):
            part = slice(start, start + step)
            current = logits[part].to(wide)
            best = current.amax(-1, keepdim=True)
            log_total = torch.sub(current, best).exp_().sum(-1, keepdim=True).log_()
            top, places[part] = current.topk(k)
            beliefs[part] = top.softmax(-1)
            believed = torch.linalg.vecdot(beliefs[part], (top - best) - log_total)
            own = ((current.gather(-1, targets[part, None]) - best) - log_total).squeeze(-1)
            values[part] = share * believed + (1 - share) * own
            lse[part] = (best + log_total).squeeze(-1)
        ctx.save_for_backward(logits, targets, lse, beliefs, places)
        ctx.share = share
        return values

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        logits, targets, lse, beliefs, places = ctx.saved_tensors
        grad = torch.empty_like(logits)
        step = rows_per_chunk(logits)
        for start in range(0, logits.shape[0], step):
            part = slice(start, start + step)
            current, weight = logits[part].to(lse.dtype), upstream[part, None]
            if torch.is_grad_enabled():  # a second derivative was asked for: `lse` must not be a constant to it
                residual = -current.softmax(-1)
            else:
                residual = (current - lse[part, None]).exp_().neg_()
            # The label is a constant: subtracting in the wide dtype keeps what a memorised token leaves of 1 - p.
            residual = residual.scatter_add(-1, places[part], ctx.share * beliefs[part])
            own = torch.full_like(lse[part, None], 1 - ctx.share)
            grad[part] = (residual.scatter_add(-1, targets[part, None], own) * weight).to(grad.dtype)
        return grad, None, None, None


def bst_loss(
    logits: Tensor,  # (N, V), any float dtype
    targets: Tensor,  # (N,) int64
    *,
    share: float,
    k: int,
) -> Tensor:  # (N,)
    """`l_t = <t_t, log q_t>` with the label `t_t = share q~_t + (1 - share) e_y`, q~ being q on its k likeliest tokens.

    The label takes no gradient, so the logit gradient is `t_t - q_t`: beside the target, what the model believes
    instead of it goes down as well. With share = 0 it is gradient ascent; with share = 1 and k >= V nothing moves.

    Args:
        logits: (N, V).
        targets: (N,) token ids.
        share: lambda, weight of the beliefs in the label, in [0, 1].
        k: tokens a belief is made of, at least 1; from V on it is the whole distribution.

    Returns:
        (N,) per token, nats, at most 0, float32 (float64 for float64 logits); not reduced (the paper sums over a
        sequence; a port averages over it). Twice differentiable.

    Raises:
        UsageError: k below 1.

    Source:
        Li et al., LLM Unlearning with LLM Beliefs, arXiv 2510.19422 (BS-T).
    """
    if k < 1:
        raise UsageError(f"BS-T's beliefs are made of k={k} tokens", hint="k must be at least 1")
    values: Tensor = _SoftAscent.apply(logits, targets, share, min(k, logits.shape[-1]))  # type: ignore[no-untyped-call]
    return values
