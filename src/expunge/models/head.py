"""A model's output head as a function of hidden states, so that logits can be made for some positions at a time.

transformers gives the logits of every position asked for at once. `kept_states` takes what goes into the head and lets
the model finish on no position at all; `Head` then does what the model would have done, including what comes after the
linear map (Gemma's soft cap, Cohere's and Granite's factor). Whether it does is asked of the model itself, once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from expunge.errors import ModelError
from expunge.models.load import autocast

PROBE = 100.0
"""Largest logit of an enlarged probe: it bends under any cap in use, which the small logits of a new model do not."""


class Finish(NamedTuple):
    """What a model does with its head's output: `cap tanh(scale z / cap)`, without a cap `scale z`."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits as the model returns them."""
        scaled = logits if self.scale == 1 else logits * self.scale
        return scaled if self.cap is None else torch.tanh(scaled / self.cap) * self.cap


class Head(NamedTuple):
    """`z = finish(W h + b)`."""

    weight: Tensor  # (V, H)
    bias: Tensor | None = None  # (V,)
    finish: Finish = Finish()
    dtype: torch.dtype | None = None
    """What autocast computes the linear map in; None: the weight's own."""

    def __call__(self, states: Tensor) -> Tensor:  # (..., H) -> (..., V)
        """Logits of some positions."""
        kind = self.dtype or self.weight.dtype
        bias = None if self.bias is None else self.bias.to(kind)
        return self.finish(nn.functional.linear(states.to(kind), self.weight.to(kind), bias))


@dataclass(frozen=True)
class Projected:
    """Logits that are made when they are read: states before the head, and the head."""

    states: Tensor  # (N, H)
    head: Head
    step: int | None = None
    """Positions whose logits exist at one time where quantities are computed from them; None: all."""

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, positions: Any) -> Tensor:
        """(n, V) logits of some positions (a slice, an index or a mask)."""
        return self.head(self.states[positions])

    @property
    def vocab(self) -> int:
        """Width of the logits."""
        return len(self.head.weight)

    def at(self, positions: Any) -> Projected:
        """The same, of some positions only."""
        return Projected(self.states[positions], self.head, self.step)


class Projection(NamedTuple):
    """Whether a model's logits can be made from the states before its head."""

    finish: Finish
    obstacle: str = ""
    """Why they cannot; empty: they can."""


_KNOWN: WeakKeyDictionary[nn.Module, tuple[type, type, Projection]] = WeakKeyDictionary()


def projection(model: Any) -> Projection:
    """What lies between a model's last states and its logits, compared with the model's own logits.

    Asked once of a model, with one forward of four tokens without gradient; processes that divide a model among them
    ask together.

    Args:
        model: not the wrapper for several processes.
    """
    head = model.get_output_embeddings()
    found = _KNOWN.get(model)
    if found is None or found[:2] != (type(model), type(head)):
        found = type(model), type(head), _examined(model, head)
        _KNOWN[model] = found
    return found[2]


def frozen_head(model: Any) -> Head:
    """A copy of a model's head that later training does not change.

    Raises:
        ModelError: the model has none.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(
            f"{type(model).__name__} has no output head, so hidden states cannot stand for its distributions",
            hint="use method.retain=nll for this model",
        )
    bias = getattr(head, "bias", None)
    return Head(head.weight.detach().clone(), None if bias is None else bias.detach().clone(), _finish(model.config))


@contextmanager
def kept_states(model: Any, finish: Finish, *, step: int) -> Iterator[list[Projected]]:
    """Inside the block a forward of `model` makes no logits: what they would be made of goes into the list.

    The forward runs to its end, as wrappers for several processes need.

    Args:
        model: not the wrapper.
        finish: from `projection`.
        step: positions whose logits will exist at one time.
    """
    kept: list[Projected] = []

    def keep(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states, *rest = args
        head = _bound(module, finish, states.device)
        kept.append(Projected(states.to(head.dtype or module.weight.dtype), head, step))
        return (states[:0], *rest)

    handle = model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


def _bound(module: Any, finish: Finish, device: torch.device) -> Head:
    """A head as it is in the midst of a forward: its weights whole, in the dtype autocast gives them."""
    weight, bias = module.weight, module.bias
    if not torch.is_grad_enabled():  # Logits made after this forward take no gradient either.
        weight, bias = weight.detach(), None if bias is None else bias.detach()
    enabled = torch.is_autocast_enabled(device.type)
    return Head(weight, bias, finish, torch.get_autocast_dtype(device.type) if enabled else None)


def _finish(config: Any) -> Finish:
    """As the configs of known families say it: Gemma 2 and later, Cohere, Granite, Falcon-H1."""
    text = config.get_text_config()
    factor = getattr(text, "logit_scale", None) or getattr(text, "lm_head_multiplier", None) or 1.0
    divisor = getattr(text, "logits_scaling", None) or 1.0
    return Finish(float(factor) / float(divisor), getattr(text, "final_logit_softcapping", None))


def _examined(model: Any, head: Any) -> Projection:
    # Another class, an adapter's or a quantised one, computes something else than `W h + b`.
    if type(head) is not nn.Linear:
        return Projection(Finish(), f"its output head is a {type(head).__name__}, not a plain linear map")
    finish = _finish(model.config)
    if not _agrees(model, head, finish):
        return Projection(finish, "it changes its logits after the output head in a way its config does not say")
    if isinstance(head.weight, DTensor):
        return Projection(finish, "its output head is divided among processes again once a forward has ended")
    return Projection(finish)


@torch.no_grad()
def _agrees(model: Any, head: nn.Linear, finish: Finish) -> bool:
    """Whether the model's logits are `finish(W h + b)`, at four positions and at the same ones enlarged."""
    device = next(model.parameters()).device
    ids = torch.arange(1, 5, device=device)[None] % model.get_input_embeddings().weight.shape[0]
    ours: list[Tensor] = []

    def probe(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        bound = _bound(module, finish, device)
        plain = args[0]  # (1, 4, H)
        largest = nn.functional.linear(plain.float(), module.weight.float()).abs().amax().clamp(min=1e-6)
        states = torch.cat([plain, plain * (PROBE / largest).to(plain.dtype)], dim=1)
        ours.append(bound(states).float())
        return (states, *args[1:])

    handle = head.register_forward_pre_hook(probe)
    try:
        with autocast(device):
            own = model(input_ids=ids, use_cache=False).logits
    finally:
        handle.remove()
    if len(ours) != 1 or ours[0].shape != own.shape:
        return False
    tolerance = 2e-2 if own.dtype.itemsize == 2 else 1e-4
    size = own.float().abs().amax(-1, keepdim=True)
    return bool(((ours[0] - own.float()).abs() <= tolerance * size).all())
