"""Arithmetic on gradients that are spread over many tensors, as if they were one long vector.

Sums over entries (dot products, norms) run in float64 and tensor by tensor, so no flat copy of a gradient is made and
the order of a model's parameters decides nothing but the last bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

Gradients = Mapping[str, Tensor]
"""Parameter name -> tensor of its shape."""


def double(tensor: Tensor) -> Tensor:
    """In float64; on the CPU where the device has no such numbers (MPS)."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that is divided among processes; itself where it is not."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def dot(
    a: Gradients,
    b: Gradients,
) -> float:
    """`<a, b>` over the names both have (a missing tensor counts as zero), summed in float64.

    Where tensors are divided among processes (`DTensor`), every process must call it, and gets the whole sum.
    """
    both = [(tensor.detach(), b[name].detach()) for name, tensor in a.items() if name in b]
    if not both:
        return 0.0
    parts = [torch.dot(double(local(x)).flatten(), double(local(y)).flatten()) for x, y in both]
    total = torch.stack([part.to(parts[0].device) for part in parts]).sum()
    if isinstance(both[0][0], DTensor):
        # Each process has summed over its own parts of the tensors.
        dist.all_reduce(total)
    return float(total)


def norm(a: Gradients) -> float:
    """`||a||`, summed in float64."""
    return math.sqrt(dot(a, a))


def cosine(a: Gradients, b: Gradients) -> float:
    """`<a, b> / (||a|| ||b||)` in [-1, 1]; 0 where either has no direction."""
    lengths = norm(a) * norm(b)
    return max(-1.0, min(1.0, dot(a, b) / lengths)) if lengths > 0 else 0.0


def scaled(a: Gradients, factor: float) -> dict[str, Tensor]:
    """`factor a`, new tensors."""
    return {name: tensor * factor for name, tensor in a.items()}


def added(a: Gradients, b: Gradients, factor: float = 1.0) -> dict[str, Tensor]:
    """`a + factor b`, new tensors; names of either, a missing tensor counts as zero."""
    both = {name: torch.add(a[name], b[name], alpha=factor) for name in a if name in b}
    only = {name: a[name].clone() if name in a else b[name] * factor for name in [*a, *b] if name not in both}
    return {name: (both | only)[name] for name in dict.fromkeys([*a, *b])}


def averaged(old: Gradients | None, new: Gradients, *, new_weight: float) -> dict[str, Tensor]:
    """`new_weight new + (1 - new_weight) old`, new tensors.

    Args:
        old: the average so far; None: zero.
        new: what is averaged in.
        new_weight: in (0, 1]; of the new values. 1 forgets the old ones.
    """
    if old is None:
        return scaled(new, new_weight)
    return {name: torch.add(tensor * new_weight, old[name], alpha=1 - new_weight) for name, tensor in new.items()}


def orthogonal(a: Gradients, to: Gradients) -> dict[str, Tensor]:
    """`a - (<a, b> / ||b||^2) b` with b = `to`: what of `a` is at right angles to it; `a` where b is zero."""
    square = dot(to, to)
    return added(a, to, -dot(a, to) / square) if square > 0 else added(a, {})


class Projected(NamedTuple):
    """A gradient after GRU's rule."""

    tensors: dict[str, Tensor]
    cosine: float
    """Between the gradients before it; 0 where either is zero."""
    changed: bool
    """Whether they were in conflict."""


def gru_projection(unlearn: Gradients, retain: Gradients, *, min_cosine: float = -1.0) -> Projected:
    """The gradient nearest to `unlearn` that has no negative inner product with `retain`.

    `g_u` where `<g_u, g_r> >= 0` or `g_r = 0`, else `g_u - (<g_u, g_r> / ||g_r||^2) g_r`: one inner product over all
    tensors, decided and applied in float64 sums, so a step along `-g` raises the retain loss by nothing to first order.

    Args:
        unlearn: g_u.
        retain: g_r, of the same names; its length does not matter.
        min_cosine: cosines below this are taken as this when projecting, so that less is taken away (the release's
            `cos_clip`: -0.5); -1: exact.

    Returns:
        The gradient in the dtype of `unlearn`, not longer than it.

    Source:
        Wang et al., GRU: Mitigating the Trade-off between Unlearning and Retention, arXiv 2503.09117.
    """
    square, product = dot(retain, retain), dot(unlearn, retain)
    angle = cosine(unlearn, retain)
    if product >= 0 or square == 0:
        return Projected(added(unlearn, {}), angle, changed=False)
    factor = product / square
    if angle < min_cosine:
        factor *= min_cosine / angle
    return Projected(added(unlearn, retain, -factor), angle, changed=True)


class SquaredCosine(NamedTuple):
    """`cos^2(g_f, g_r)` and the vectors whose Hessian products make its gradient."""

    value: float
    forget: dict[str, Tensor]
    """`2 c (g_r / (n_f n_r) - c g_f / n_f^2)`, to be multiplied by the forget loss's Hessian."""
    retain: dict[str, Tensor]
    """`2 c (g_f / (n_f n_r) - c g_r / n_r^2)`, to be multiplied by the retain loss's Hessian."""


def squared_cosine(forget: Gradients, retain: Gradients) -> SquaredCosine:
    """`c^2` for c the cosine of two gradients, prepared for `grad c^2 = H_f v_f + H_r v_r`.

    Args:
        forget: g_f, of norm n_f.
        retain: g_r, of norm n_r, of the same names.

    Returns:
        Value in [0, 1] and both vectors; all zero where a gradient is zero.

    Source:
        Mandal & Gottwald, Unlearning via loss-gradient orthogonalisation (UNO), arXiv 2506.04712; the split into two
        Hessian products follows from the chain rule.
    """
    n_f, n_r, c = norm(forget), norm(retain), cosine(forget, retain)
    if n_f == 0 or n_r == 0:
        return SquaredCosine(0.0, scaled(forget, 0.0), scaled(retain, 0.0))
    cross = 2 * c / (n_f * n_r)
    return SquaredCosine(
        c * c,
        added(scaled(retain, cross), forget, -2 * c * c / n_f**2),
        added(scaled(forget, cross), retain, -2 * c * c / n_r**2),
    )
