"""KL divergence from the frozen starting model, position by position: keep the whole distribution, not one token.

Both softmaxes are made chunk by chunk, in the forward and again in the backward, so that nothing of the size of the
logits is kept besides the two inputs and the one gradient buffer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from expunge.losses.logprobs import rows_per_chunk, wide_dtype


class _KL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, ref_logits: Tensor) -> Tensor:
        wide = wide_dtype(torch.promote_types(logits.dtype, ref_logits.dtype))
        values = torch.empty(logits.shape[0], dtype=wide, device=logits.device)
        lse, ref_lse = torch.empty_like(values), torch.empty_like(values)
        step = rows_per_chunk(logits)
        for start in range(0, logits.shape[0], step):
            part = slice(start, start + step)
            current, reference = logits[part].to(wide), ref_logits[part].to(wide)
            lse[part], ref_lse[part] = current.logsumexp(-1), reference.logsumexp(-1)
            probs = (reference - ref_lse[part, None]).exp_()
            expected = torch.linalg.vecdot(probs, reference - current)
            values[part] = expected + (lse[part] - ref_lse[part])
        ctx.save_for_backward(logits, ref_logits, lse, ref_lse)
        return values

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        logits, ref_logits, lse, ref_lse = ctx.saved_tensors
        grad = torch.empty_like(logits)
        step = rows_per_chunk(logits)
        for start in range(0, logits.shape[0], step):
            part = slice(start, start + step)
            current, weight = logits[part].to(lse.dtype), upstream[part, None]
            reference = (ref_logits[part].to(lse.dtype) - ref_lse[part, None]).exp_()
            if torch.is_grad_enabled():  # a second derivative was asked for: `lse` must not be a constant to it
                grad[part] = (current.softmax(-1) - reference) * weight
            else:
                grad[part] = (current - lse[part, None]).exp_().sub_(reference).mul_(weight)
        return grad, None


def kl_loss(
    logits: Tensor,  # (N, V), any float dtype
    ref_logits: Tensor,  # (N, V), any float dtype
) -> Tensor:  # (N,)
    """`l_t = KL(softmax(z_o,t) || softmax(z_t))`, the reference first.

    Args:
        logits: (N, V) of the trained model.
        ref_logits: (N, V) of the frozen starting model at the same positions, finite; no gradient reaches it.

    Returns:
        (N,) per position, nats, at least 0 up to rounding, float32 (float64 for float64 logits); not reduced.
        Twice differentiable.

    Source:
        Maini et al., TOFU, arXiv 2401.06121 (KL minimisation).
    """
    values: Tensor = _KL.apply(logits, ref_logits)  # type: ignore[no-untyped-call]
    return values
