"""Quantities of single positions, computed a few positions at a time: no (N, vocab) tensor outlives its chunk.

The forward makes each chunk's logits, uses them and lets them go; the backward makes them again. What remains between
the two is the states before the head, (N, H). The head's gradient is added up in one buffer, which autograd's own way
(`torch.utils.checkpoint` around each chunk) would make anew for every chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor

from expunge.losses.place import kind_of
from expunge.models.head import Head, Projected

LogitsChunk = int | Literal["auto"] | None
"""Positions whose logits exist at one time; `auto`: all, unless they are large; None: always all."""
LOGIT_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20, "mps": 128 << 20}
"""float32 logits above which `auto` makes them in chunks of this size: large enough for a full-speed matrix product."""

T = TypeVar("T", bound=Tensor | tuple[Any, ...])


class Rows(Protocol):
    """(N, ...) values of positions: a tensor, logits to be made (`Projected`), a stored table (`StoredRows`)."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, part: slice, /) -> Tensor:
        """Those of some positions."""


def chunk_of(setting: LogitsChunk, *, count: int, vocab: int, device: torch.device) -> int | None:
    """Positions per chunk for `count` positions; None where all of them are one.

    Args:
        setting: see `LogitsChunk`.
        count: positions that are scored.
        vocab: width of the logits.
        device: decides what is large.
    """
    if setting is None:
        return None
    fits = LOGIT_BYTES.get(kind_of(device), LOGIT_BYTES["cpu"]) // (4 * vocab) if setting == "auto" else setting
    return max(1, fits) if count > fits else None


def per_position(
    quantity: Callable[..., T],
    logits: Tensor | Projected,
    *values: Rows,
) -> T:
    """`quantity(logits, *values)`, in chunks of positions where the logits are not made yet.

    Args:
        quantity: of (n, V) logits and the same n positions of every value; gives (n, ...) tensors, one or a tuple, in
            which no position depends on another. It runs again in the backward pass, so it must not draw at random.
        logits: of N positions.
        values: (N, ...), constants: no gradient reaches them.

    Returns:
        (N, ...) of every result, differentiable by the logits or by states and head, twice if `quantity` is.
    """
    constants = tuple(each.detach() if isinstance(each, Tensor) else each for each in values)
    if not isinstance(logits, Projected):
        return quantity(logits, *(each if isinstance(each, Tensor) else each[:] for each in constants))
    work = _Work(quantity, constants, logits)
    columns = _Chunked.apply(work, logits.states, logits.head.weight, logits.head.bias)  # type: ignore[no-untyped-call]
    return cast(T, work.restored(columns))


class _Work:
    """One quantity over all positions; the tensors that take gradients are given at every call."""

    def __init__(self, quantity: Callable[..., Any], values: Sequence[Rows], logits: Projected) -> None:
        self.quantity, self.values, self.head = quantity, values, logits.head
        self.count = len(logits)
        self.step = logits.step or max(1, self.count)
        self.kind: Any = None
        """How `quantity` bundles its results: None for a single tensor."""
        self.filled: list[bool] = []
        """Which places of the bundle hold a tensor."""

    def parts(self) -> Iterator[slice]:
        """The chunks; one even of nothing, so that results have a shape."""
        for start in range(0, max(1, self.count), self.step):
            yield slice(start, start + self.step)

    def columns(self, logits: Tensor, part: slice) -> list[Tensor]:
        """The results of a chunk, without its empty places."""
        made = self.quantity(logits, *(each[part] for each in self.values))
        bundle = [made] if isinstance(made, Tensor) else list(made)
        self.kind = None if isinstance(made, Tensor) else type(made)
        self.filled = [each is not None for each in bundle]
        return [each for each in bundle if each is not None]

    def restored(self, columns: Sequence[Tensor]) -> Any:
        """All results, as `quantity` bundles them."""
        left = iter(columns)
        bundle = [next(left) if filled else None for filled in self.filled]
        if self.kind is None:
            return bundle[0]
        return tuple(bundle) if self.kind is tuple else self.kind(*bundle)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: _Work, states: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.work = work
        ctx.save_for_backward(states, weight, bias)
        head = _cast(work.head, weight, bias)
        with torch.autocast(states.device.type, enabled=False):
            made = [work.columns(head(states[part]), part) for part in work.parts()]
        return tuple(torch.cat(column) for column in zip(*made, strict=True))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        states, weight, bias = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:]
        with torch.autocast(states.device.type, enabled=False):
            if torch.is_grad_enabled():
                return (None, *_with_graph(ctx.work, (states, weight, bias), wanted, upstream))
            return (None, *_gradients(ctx.work, (states, weight, bias), wanted, upstream))


Leaves = tuple[Tensor, Tensor, Tensor | None]
"""States, weight, bias."""


class _Pairs(NamedTuple):
    values: list[Tensor]
    grads: list[Tensor]


def _cast(head: Head, weight: Tensor, bias: Tensor | None) -> Head:
    """The head with its weights converted once for all chunks."""
    kind = head.dtype or weight.dtype
    return Head(weight.to(kind), None if bias is None else bias.to(kind), head.finish)


def _gradients(
    work: _Work, leaves: Leaves, wanted: Sequence[bool], upstream: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """By states, weight and bias, in one buffer each."""
    states, weight, bias = leaves
    head = _cast(work.head, weight, bias)
    plain = head._replace(finish=type(head.finish)())
    by_states = torch.empty_like(states) if wanted[0] else None
    by_weight = torch.zeros_like(weight) if wanted[1] else None
    by_bias = torch.zeros_like(bias) if bias is not None and wanted[2] else None
    for part in work.parts():
        inputs = states[part]
        grad = _by_logits(work, plain(inputs), part, upstream)
        if by_states is not None:
            torch.mm(grad, head.weight, out=by_states[part])
        if by_weight is not None and by_weight.dtype == grad.dtype:
            by_weight.addmm_(grad.T, inputs)
        elif by_weight is not None:
            # A sum over chunks in 16 bits would lose what one product adds up in its wide accumulators.
            by_weight.add_(grad.T @ inputs)
        if by_bias is not None:
            by_bias.add_(grad.sum(0, dtype=by_bias.dtype))
        del grad  # Else it lies beside the next chunk's.
    return by_states, by_weight, by_bias


def _by_logits(work: _Work, raw: Tensor, part: slice, upstream: Sequence[Tensor | None]) -> Tensor:
    """(n, V) gradient by what the linear map gives."""
    raw.requires_grad_()
    with torch.enable_grad():
        columns = work.columns(work.head.finish(raw), part)
    values, grads = _paired(columns, upstream, part)
    return torch.autograd.grad(values, raw, grads)[0] if values else torch.zeros_like(raw)


def _with_graph(
    work: _Work, leaves: Leaves, wanted: Sequence[bool], upstream: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The same, to be differentiated again: autograd keeps every chunk's logits for that."""
    states, weight, bias = leaves
    head = _cast(work.head, weight, bias)
    pairs = [_paired(work.columns(head(states[part]), part), upstream, part) for part in work.parts()]
    values, grads = ([each for pair in pairs for each in pair[side]] for side in (0, 1))
    asked = [leaf for leaf, want in zip(leaves, wanted, strict=True) if want and leaf is not None]
    found = iter(torch.autograd.grad(values, asked, grads, create_graph=True))
    return [next(found) if want and leaf is not None else None for leaf, want in zip(leaves, wanted, strict=True)]


def _paired(columns: Sequence[Tensor], upstream: Sequence[Tensor | None], part: slice) -> _Pairs:
    """A chunk's results that take a gradient, and what arrives at them."""
    pairs = [(column, grad) for column, grad in zip(columns, upstream, strict=True) if column.requires_grad]
    return _Pairs(
        [column for column, grad in pairs if grad is not None], [grad[part] for _, grad in pairs if grad is not None]
    )
