"""WAGLE: only the weights that matter most for forgetting may move."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from expunge.errors import StoppedError, UsageError
from expunge.methods.workshop import Workshop
from expunge.models.adapters import first_matrices, trainable
from expunge.train.gradients import double
from expunge.train.wrappers.base import GradientMask, MaskWrapper


class WAGLE(MaskWrapper):
    """Only the `ratio` of all weights with the largest `|S_i|` moves, `S_i = (theta_i - g_r,i / gamma) g_f,i`.

    g_f and g_r are the gradients of the mean token NLL over the whole forget and the whole retain set, at the starting
    model; the mask is made once and stays. It is one ranking over all parameters of the model, of exactly
    `floor(ratio n)` entries; equal scores go by position. Masked entries keep their bits.

    With the authors' gamma the first term hardly counts, `|S| = |g_r g_f| / gamma`: weights that matter for retaining
    come first as well. A run notes how large both terms are.

    Of adapters only the second matrices are ranked and trained: the first ones have no gradient at the starting model.
    """

    name: ClassVar[str] = "wagle"
    paper: ClassVar[str] = "Jia et al., WAGLE: Strategic Weight Attribution, arXiv 2410.17509"
    whole_tensors: ClassVar[bool] = True
    roles: ClassVar[tuple[str, ...]] = ("forget", "retain")

    ratio: float = Field(default=0.95, gt=0, le=1)
    """Share of the weights that may move (authors, TOFU: 0.95 with GradDiff and NPO, 0.8 with refusals; WMDP: 0.4 and
    0.6); 1: all of them."""
    gamma: float = Field(default=1e-6, gt=0)
    """Curvature that stands in for the retain loss's Hessian (authors: 1e-6, where gradients are sums over rows and not
    means: the same as 1e-6 / rows here). Large: `|theta g_f|`; small: `|g_r g_f|`."""
    score_loss: Literal["nll", "method"] = "nll"
    """Loss of g_f: the answers' NLL, or the method's own forget loss (refusals, where it trains those, as the authors
    do). Its sign and scale do not matter."""
    after_clip: bool = False
    """Mask after clipping (release) instead of before, which leaves masked entries out of the gradient's norm."""

    def build(self, workshop: Workshop, model: nn.Module) -> EntryMask:
        """The mask, from one pass over each set.

        Raises:
            UsageError: `ratio` selects no weight.
            StoppedError: a gradient is no number.
        """
        first = first_matrices(model)
        weights = {name: parameter for name, parameter in trainable(model).items() if name not in first}
        named = {name: parameter.detach() for name, parameter in weights.items()}
        count = sum(tensor.numel() for tensor in named.values())
        keep = share_of(self.ratio, count)
        if keep == 0:
            raise UsageError(
                f"ratio {self.ratio:g} of {count} weights is none: nothing would be trained",
                hint=f"set ratio to {1 / count:.2g} or more",
            )
        if self.score_loss == "nll":
            forget = workshop.gradient(workshop.datasets["forget"])
        else:
            forget = workshop.role_gradient("forget")
        retain = workshop.gradient(workshop.datasets["retain"])
        scores = {
            name: wagle_score(tensor, forget[name], retain[name], gamma=self.gamma).abs()
            for name, tensor in named.items()
        }
        size = sum(float(double(tensor * forget[name]).abs().sum()) for name, tensor in named.items())
        curved = sum(float(double(retain[name] * forget[name]).abs().sum()) for name in named) / self.gamma
        workshop.note(
            f"wagle lets {keep} of {count} weights move; |g_r g_f| / gamma is {_times(curved, size)} |theta g_f|"
        )
        return EntryMask(largest(scores, keep), weights, after_clip=self.after_clip, frozen=first)


def wagle_score(theta: Tensor, forget: Tensor, retain: Tensor, *, gamma: float) -> Tensor:
    """`S_i = (theta_i - g_r,i / gamma) g_f,i`, entry by entry, in float64 and returned in float32.

    Args:
        theta: weights, any shape.
        forget: g_f, of that shape.
        retain: g_r, of that shape.
        gamma: > 0.

    Source:
        Jia et al., WAGLE, arXiv 2410.17509; taken as the definition (an implicit derivative worked out in full has one
        more term).
    """
    return ((double(theta) - double(retain) / gamma) * double(forget)).float().to(theta.device)


def share_of(ratio: float, count: int) -> int:
    """`floor(ratio count)` of the decimal number as it was written: 0.29 of 100 is 29, whatever its binary form."""
    return math.floor(Fraction(repr(ratio)) * count)


def largest(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Masks of exactly `count` entries: the largest over all tensors; of equal ones the earlier, tensor by tensor.

    Nothing is sorted and no flat copy is made: the bits of non-negative floats order as integers, so two histograms of
    16 bits find the threshold.

    Args:
        scores: non-negative, float32.
        count: in [0, entries].

    Raises:
        StoppedError: a score is no number.
    """
    for name, tensor in scores.items():
        if tensor.isnan().any():
            raise StoppedError(
                f"scores of {name} are no numbers: the starting model's gradient is not finite",
                hint="look at the starting model's weights and at the rows",
            )
    if count == 0:
        return {name: torch.zeros_like(tensor, dtype=torch.bool) for name, tensor in scores.items()}
    bits = {name: tensor.contiguous().view(torch.int32) for name, tensor in scores.items()}
    high, left = _bucket((part >> 16 for part in bits.values()), count)
    low, left = _bucket(((part & 0xFFFF)[part >> 16 == high] for part in bits.values()), left)
    threshold = (high << 16) | low
    masks: dict[str, Tensor] = {}
    for name, part in bits.items():
        equal = part == threshold
        taken = equal & (equal.flatten().cumsum(0).reshape(equal.shape) <= left)
        left -= int(taken.sum())
        masks[name] = (part > threshold) | taken
    return masks


def _bucket(parts: Any, count: int) -> tuple[int, int]:
    """The 16-bit value that the `count`-th largest has, and how many of that value are among the `count` largest."""
    histogram = torch.zeros(1 << 16, dtype=torch.int64)
    for part in parts:
        histogram += torch.bincount(part.flatten(), minlength=1 << 16).cpu()
    from_top = histogram.flip(0).cumsum(0)
    place = int((from_top < count).sum())
    before = int(from_top[place - 1]) if place else 0
    return (1 << 16) - 1 - place, count - before


class EntryMask(GradientMask):
    """A fixed mask of single entries; those that may not move keep the bits they have when it is made.

    Args:
        masks: parameter -> True where it may move.
        named: the parameters it was made of.
        after_clip: act after clipping.
        frozen: parameters that take no part in training.
    """

    def __init__(
        self,
        masks: Mapping[str, Tensor],
        named: Mapping[str, nn.Parameter],
        *,
        after_clip: bool = False,
        frozen: frozenset[str] = frozenset(),
    ) -> None:
        self.after_clip = after_clip
        self.named = named
        self._frozen = frozen
        self._hold(masks)

    def frozen(self) -> frozenset[str]:
        """See `GradientMask.frozen`."""
        return self._frozen

    def _hold(self, masks: Mapping[str, Tensor]) -> None:
        self.fixed = {name: ~mask for name, mask in masks.items() if not bool(mask.all())}
        """Parameter -> True where it may not move; absent where all of it may."""
        self.held = {name: self.named[name].detach()[fixed] for name, fixed in self.fixed.items()}

    @torch.no_grad()
    def on_gradient(self, named: Mapping[str, nn.Parameter]) -> None:
        """Zero what may not move."""
        for name, fixed in self.fixed.items():
            gradient = named[name].grad if name in named else None
            if gradient is not None:
                gradient.masked_fill_(fixed, 0)

    @torch.no_grad()
    def after_step(self, named: Mapping[str, nn.Parameter]) -> None:
        """Put it back."""
        for name, fixed in self.fixed.items():
            if name in named:
                named[name].masked_scatter_(fixed, self.held[name])

    def state_dict(self) -> dict[str, Any]:
        """The mask, one bit per entry of the parameters that are not wholly free."""
        return {
            "fixed": {name: torch.from_numpy(np.packbits(fixed.cpu().numpy())) for name, fixed in self.fixed.items()}
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the mask the run began with; the weights, restored before this, hold what it guards."""
        masks = {}
        for name, packed in state["fixed"].items():
            like = self.named[name]
            flat = np.unpackbits(packed.numpy(), count=like.numel()).astype(bool)
            masks[name] = ~torch.from_numpy(flat).reshape(like.shape).to(like.device)
        self._hold(masks)


def _times(numerator: float, denominator: float) -> str:
    return f"{numerator / denominator:.3g} times" if denominator > 0 else "beside a vanishing"
