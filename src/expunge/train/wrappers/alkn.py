"""ALKN's mask: which entries may move, by how their gradients agree with the retain set's so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from expunge.methods.workshop import Workshop
from expunge.models.adapters import first_matrices
from expunge.train.wrappers.base import GradientMask, MaskWrapper

TRIM = 0.15
"""Share of a tensor's largest and smallest values that the threshold's interpolation leaves out (the authors' code)."""
FEWEST = 5
"""Values left out at each end of a small tensor (the authors' code)."""
DECREMENTS = 5
"""Levels of the share that may move (the authors' code)."""
INHERITED = "alkn/"
"""Prefix of what an earlier request left, `alkn/<parameter>/<mask or threshold>`."""


class ALKNMask(MaskWrapper):
    """Keeps a step's gradient where an accumulated product with the retain gradient is beyond a threshold.

    `m <- m + g * G_r` entry by entry, g the step's gradient and G_r the retain set's at the starting model. From the
    second request of a sequence on, `m <- m - std(g * G_r) kappa` as well where an earlier request has moved an
    entry. An entry moves in this step where m is above its tensor's threshold.

    `keep: largest` is the release's criterion and the default, for parity: no printed definition was found to say
    otherwise. To first order it is the wrong way round for a method that negates what it learned: after the negation
    the weights have moved by `+eta g` on kept entries, which changes the retain loss by `+eta sum g G_r`, most where m
    is largest. `keep: smallest` accumulates `-g * G_r` instead and is first-order safe under negation; for a method
    that does not negate, `largest` is the safe one.

    Of adapters only the second matrices are masked and trained: the first ones have no gradient at the starting model,
    and as they stay, entries of one request's adapter are those of the next one's.
    """

    name: ClassVar[str] = "alkn"
    paper: ClassVar[str] = "Wuerkaixi et al., Adaptive Localization of Knowledge Negation, ICML 2025 (PMLR 267)"
    whole_tensors: ClassVar[bool] = True
    roles: ClassVar[tuple[str, ...]] = ("retain",)

    keep: Literal["largest", "smallest"] = "largest"
    """Entries that may move: the release's, or those whose negation lowers the retain loss to first order."""
    rho: float = Field(default=0.8, gt=TRIM, le=1)
    """About the share of each tensor that may move at first (authors: 0.8)."""
    rho_end: float | None = Field(default=None, gt=TRIM, le=1)
    """The share it goes down towards in five levels; half of `rho` unless said. With `rho` 1 as well nothing is
    masked."""
    kappa: float = Field(default=0.5, ge=0)
    """How far entries that an earlier request moved are held back, in standard deviations (authors: 0.5)."""
    low_lr_ratio: float = Field(default=0.1, ge=0, le=1)
    """Learning rate of the half of the tensors that earlier requests moved most, over the others' (authors: 0.1)."""
    hold: bool = True
    """Whether a masked entry keeps its bits in a step; false: weight decay and momentum still move it (release)."""
    after_clip: bool = False
    """Mask after clipping instead of before (release)."""

    @model_validator(mode="after")
    def _descends(self) -> ALKNMask:
        end = self.rho / 2 if self.rho_end is None else self.rho_end
        if not TRIM < end <= self.rho:
            raise ValueError(f"rho goes down to {end:g}, which must lie above {TRIM} and not above rho={self.rho:g}")
        return self

    def build(self, workshop: Workshop, model: nn.Module) -> ALKNGradientMask:
        """The mask with the retain gradient at the starting model, and what earlier requests left."""
        first = first_matrices(model)
        gradient = workshop.gradient(workshop.datasets["retain"])
        retain = {name: tensor for name, tensor in gradient.items() if name not in first}
        return ALKNGradientMask(self, retain, _inherited(workshop.inherited), frozen=first)


def _inherited(given: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """`mask` and `threshold` by parameter name; empty in a first request."""
    found: dict[str, dict[str, Tensor]] = {"mask": {}, "threshold": {}}
    for key, tensor in given.items():
        if key.startswith(INHERITED):
            name, _, kind = key.removeprefix(INHERITED).rpartition("/")
            found[kind][name] = tensor
    return found


class ALKNGradientMask(GradientMask):
    """The mask at work.

    Args:
        config: its keys.
        retain: parameter -> gradient of the retain set at the starting model.
        inherited: `mask` (entries that earlier requests moved) and `threshold`, by parameter; empty in a first request.
        frozen: parameters that take no part in training.
    """

    def __init__(
        self,
        config: ALKNMask,
        retain: Mapping[str, Tensor],
        inherited: Mapping[str, Mapping[str, Tensor]],
        *,
        frozen: frozenset[str] = frozenset(),
    ) -> None:
        self.config, self.retain, self._frozen = config, retain, frozen
        self.after_clip = config.after_clip
        self.earlier = {name: mask.to(retain[name].device) for name, mask in inherited.get("mask", {}).items()}
        self.thresholds = {name: float(value) for name, value in inherited.get("threshold", {}).items()}
        self.fixed = bool(self.thresholds)
        """Whether the thresholds are an earlier request's, which are used as they are."""
        self.score = {name: torch.zeros_like(gradient) for name, gradient in retain.items()}
        self.slow = _densest(self.earlier)
        self.total_steps, self.step = 1, 0
        self._kept: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}

    def frozen(self) -> frozenset[str]:
        """See `GradientMask.frozen`."""
        return self._frozen

    def begin(self, *, total_steps: int) -> None:
        """See `GradientMask.begin`."""
        self.total_steps = total_steps

    @property
    def share(self) -> float:
        """About the share of each tensor that may move in this step."""
        start = self.config.rho
        end = start / 2 if self.config.rho_end is None else self.config.rho_end
        every = max(1, self.total_steps // DECREMENTS)
        # A level lasts from its first step on, so `end` itself, of the step after the last, is not reached.
        return start - (start - end) * (self.step // every * every) / self.total_steps

    @torch.no_grad()
    def on_gradient(self, named: Mapping[str, nn.Parameter]) -> None:
        """Accumulate, set the thresholds, and zero what may not move."""
        sign = 1.0 if self.config.keep == "largest" else -1.0
        for name, parameter in named.items():
            if parameter.grad is None:
                continue
            product = sign * parameter.grad * self.retain[name]
            self.score[name] += product
            if name in self.earlier:
                self.score[name] -= _std(product) * self.config.kappa * self.earlier[name]
            if not self.fixed:
                self.thresholds[name] = trimmed_threshold(self.score[name], self.share)
            kept = self.score[name] > self.thresholds[name]
            parameter.grad *= kept
            self._kept[name] = kept
            if self.config.hold or name in self.slow:
                self._before[name] = parameter.detach().clone()

    @torch.no_grad()
    def after_step(self, named: Mapping[str, nn.Parameter]) -> None:
        """Slow down the tensors that earlier requests moved most, and put masked entries back."""
        for name, before in self._before.items():
            parameter = named[name]
            if name in self.slow:
                # Every optimizer's step is proportional to its rate, so this is a smaller rate of the tensor.
                parameter.copy_(torch.lerp(before, parameter, self.config.low_lr_ratio))
            if self.config.hold:
                parameter.copy_(torch.where(self._kept[name], parameter, before))
        self._before = {}
        self.step += 1

    def logged(self) -> dict[str, float]:
        """`kept`: the share of all entries that could move in the step."""
        entries = sum(kept.numel() for kept in self._kept.values())
        return {"kept": sum(int(kept.sum()) for kept in self._kept.values()) / max(entries, 1)}

    def bequest(self) -> dict[str, Tensor]:
        """Entries that this or an earlier request could move at its end, and the thresholds."""
        left: dict[str, Tensor] = {}
        for name, threshold in self.thresholds.items():
            kept = self.score[name] > threshold
            left[f"{INHERITED}{name}/mask"] = kept | self.earlier[name] if name in self.earlier else kept
            left[f"{INHERITED}{name}/threshold"] = torch.tensor(threshold, dtype=torch.float64)
        return left

    def state_dict(self) -> dict[str, Any]:
        """Scores, thresholds and the step; the retain gradient is computed again."""
        return {"score": self.score, "thresholds": dict(self.thresholds), "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `GradientMask.load_state_dict`."""
        self.score = {name: tensor.to(self.retain[name].device) for name, tensor in state["score"].items()}
        self.thresholds, self.step = dict(state["thresholds"]), int(state["step"])


def trimmed_threshold(values: Tensor, share: float) -> float:
    """The value above which about `share` of the entries lie, by a line between the trimmed ends.

    With k = max(5, int(0.15 n)) (at most n / 2), `b` the k-th largest and `a` the k-th smallest value:
    `b - (b - a) (share n - k + 1) / (n - 2 k + 2)`.

    Args:
        values: any shape, n entries.
        share: of the entries that are to lie above, in (0, 1]; at 1 all of them do.

    Returns:
        The threshold; exact where the middle of the values is spread evenly.

    Source:
        The authors' code of ALKN (zaocan666/ALKN).
    """
    if share >= 1:
        return float("-inf")
    flat = values.flatten()
    n = flat.numel()
    k = min(max(FEWEST, int(n * TRIM)), max(1, n // 2))
    top = float(torch.topk(flat, k).values[-1])
    bottom = float(torch.topk(flat, k, largest=False).values[-1])
    return top - (top - bottom) * (share * n - k + 1) / (n - 2 * k + 2)


def _std(values: Tensor) -> Tensor:
    """Standard deviation; 0 for a single value."""
    return values.std() if values.numel() > 1 else values.new_zeros(())


def _densest(masks: Mapping[str, Tensor]) -> frozenset[str]:
    """The half of the tensors of which most entries are set (the larger half of an odd number)."""
    ascending = sorted(masks, key=lambda name: float(masks[name].float().mean()))
    return frozenset(ascending[len(ascending) // 2 :])
