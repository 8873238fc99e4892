"""float32 log-softmax on the flat layout, in chunks, so that no second (N, vocab) tensor is held for the backward.

Autograd's own log_softmax keeps its (N, vocab) output, in float32, next to the logits. Here the forward keeps one
number per position, and the backward recomputes the softmax chunk by chunk into the one gradient buffer the logits
need anyway.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from expunge.losses.place import kind_of

CHUNK_BYTES = 4 << 20
"""Working set of one chunk on a CPU: small enough for its cache, large enough to amortise a kernel launch."""


class Normalised(NamedTuple):
    """The two numbers per position every likelihood loss needs."""

    logp: Tensor
    """(N,) log-probability of the target token."""
    lse: Tensor
    """(N,) log-sum-exp over the vocabulary."""


def rows_per_chunk(logits: Tensor) -> int:
    """Positions per chunk of a (N, V) tensor, so that one float32 chunk is `CHUNK_BYTES` (64 times that on a GPU)."""
    target = CHUNK_BYTES if kind_of(logits.device) == "cpu" else 64 * CHUNK_BYTES
    return max(1, target // (4 * logits.shape[-1]))


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 for float64 inputs: what sums over a vocabulary are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        wide = wide_dtype(logits.dtype)
        logp = torch.empty(logits.shape[0], dtype=wide, device=logits.device)
        lse = torch.empty_like(logp)
        step = rows_per_chunk(logits)
        for start in range(0, logits.shape[0], step):
            part = slice(start, start + step)
            scaled = logits[part].to(wide) if temperature == 1 else logits[part].to(wide) / temperature
            best = scaled.amax(-1)
            chosen = scaled.gather(-1, targets[part, None]).squeeze(-1)
            log_total = torch.sub(scaled, best[:, None]).exp_().sum(-1).log_()
            # Not chosen - lse: of a memorised token both are near the maximum, and little but rounding would be left.
            logp[part] = (chosen - best) - log_total
            lse[part] = best + log_total
        ctx.save_for_backward(logits, targets, lse)
        ctx.temperature = temperature
        return logp, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits, targets, lse = ctx.saved_tensors
        grad_logp, grad_lse = (grad / ctx.temperature for grad in grads)
        upstream = (grad_lse - grad_logp)[:, None]
        grad = torch.empty_like(logits)
        step = rows_per_chunk(logits)
        for start in range(0, logits.shape[0], step):
            part = slice(start, start + step)
            probs = _softmax(logits[part].to(lse.dtype), lse[part, None], ctx.temperature)
            # In place unless a second derivative was asked for: its graph keeps `probs`.
            grad[part] = probs * upstream[part] if torch.is_grad_enabled() else probs.mul_(upstream[part])
        # The target's entry is p - 1 for a likelihood; summed in the wide dtype, because with 16-bit logits and a
        # memorised token (p near 1) that difference would be lost to rounding.
        target = targets[:, None]
        own = _softmax(logits.gather(-1, target).to(lse.dtype), lse[:, None], ctx.temperature)
        grad.scatter_(-1, target, (own * upstream + grad_logp[:, None]).to(grad.dtype))
        return grad, None, None


def _softmax(logits: Tensor, lse: Tensor, temperature: float) -> Tensor:
    """A new tensor `exp(z / T - lse)`."""
    return ((logits if temperature == 1 else logits / temperature) - lse).exp_()


def normalise(
    logits: Tensor,  # (N, V), any float dtype
    targets: Tensor,  # (N,) int64
    *,
    temperature: float = 1.0,
) -> Normalised:
    """Log-probability of the target and `log sum_v exp(z_v / T)` per position, with one gradient buffer between them.

    Args:
        logits: (N, V).
        targets: (N,) token ids.
        temperature: T > 0; the distribution is `softmax(z / T)`.

    Returns:
        `logp` in nats and `lse`, float32 (float64 for float64 logits), not reduced; twice differentiable.
    """
    return Normalised(*_Normalise.apply(logits, targets, temperature))  # type: ignore[no-untyped-call]
