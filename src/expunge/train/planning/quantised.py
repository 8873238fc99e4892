"""Shapes of weights in 4 or 8 bits: what bitsandbytes' linear layers hold and make, for a plan without weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

BITS_PER_SCALE = {4: 8 / 64 + 32 / (64 * 256), 8: 0.0}
"""4-bit: an 8-bit scale for every 64 weights, and a float32 one for every 256 of those (double quantisation)."""


class _Product(torch.autograd.Function):
    """`x W^T` of a weight that is unpacked where it is used, and not kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, shape: torch.Size) -> Tensor:
        ctx.shape = shape
        return nn.functional.linear(inputs, inputs.new_empty(shape))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        return upstream[0] @ upstream[0].new_empty(ctx.shape), None


class Quantised(nn.Module):
    """Stands for a frozen linear layer whose weight is packed.

    Args:
        layer: the float32 layer, (out, in).
        bits: 4 or 8 per weight.
    """

    def __init__(self, layer: nn.Linear, *, bits: int) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias
        scales = 4 * layer.out_features if bits == 8 else 0
        size = round(layer.weight.numel() * (bits + BITS_PER_SCALE[bits]) / 8) + scales
        self.register_buffer("packed", torch.empty(size, dtype=torch.uint8))

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., out)."""
        kind = inputs.dtype
        if torch.is_autocast_enabled(inputs.device.type):
            kind = torch.get_autocast_dtype(inputs.device.type)
        product: Tensor = _Product.apply(inputs.to(kind), torch.Size((self.out_features, self.in_features)))  # type: ignore[no-untyped-call]
        return product if self.bias is None else product + self.bias.to(kind)


def quantise(model: Any, *, bits: int) -> None:
    """Put `Quantised` in place of every frozen linear layer but the output head."""
    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child is not head and not child.weight.requires_grad:
                setattr(parent, name, Quantised(child, bits=bits))
