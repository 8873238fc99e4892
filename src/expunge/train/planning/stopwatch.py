"""How long a rehearsed step takes here: each of its distinct operations is carried out, on numbers of its shapes."""

from __future__ import annotations

import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

_ROUNDS = 2
_ENOUGH = 0.003
"""Seconds after which an operation is not repeated any more."""
_LONGEST = 0.1
"""Seconds an operation may take, by arithmetic and traffic, to be carried out at all."""
_LARGEST = 2 << 30
"""Bytes an operation may read and write to be carried out."""
_SHELF = 64 << 20
"""Bytes: more than caches hold."""
_COPIES = 16
_PRODUCT, _COPY = 768, 1 << 24
"""Rows of the matrix product, numbers of the copy, by which the others are estimated."""
_NOT_ALONE = (RuntimeError, IndexError, TypeError, ValueError)
"""Raised by an operation whose numbers have to fit together; it is estimated."""


class Call(NamedTuple):
    """An operation, with tensors that have shapes only where the model's numbers would be."""

    func: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    flops: float
    traffic: int
    """Bytes read and written."""


class Operations:
    """The distinct operations of a step and how often each is carried out, by what it works for."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[Hashable]] = {}
        self.calls: dict[Hashable, Call] = {}

    def add(self, part: str, call: Call) -> None:
        """Count one more.

        Args:
            part: what it works for.
            call: of which one like it is carried out.
        """
        key = (call.func, _looks(call.args), _looks(call.kwargs))
        self.counts.setdefault(part, Counter())[key] += 1
        if key not in self.calls:
            self.calls[key] = call._replace(args=tree_map(_kept, call.args), kwargs=tree_map(_kept, call.kwargs))


class Stopwatch:
    """Times operations on a device that is here, every one once; the first question for seconds starts it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._known: dict[Hashable, float] = {}
        self._shelf = _Shelf(device)

    @cached_property
    def _pace(self) -> _Pace:
        return _pace(self.device)

    def seconds(self, operations: Operations) -> dict[str, float]:
        """Of every part; takes a few seconds.

        What would take long by itself, or more memory than a plan should, is estimated from a product and a copy.
        """
        for key, call in operations.calls.items():
            if key not in self._known:
                self._known[key] = _seconds(call, self._shelf, self._pace)
        return {
            part: sum(self._known[key] * count for key, count in found.items())
            for part, found in operations.counts.items()
        }


class _Pace(NamedTuple):
    flops: float
    """Per second."""
    traffic: float
    """Bytes per second."""


class _Like(NamedTuple):
    """A tensor of the model, without its storage."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


def _looks(value: Any) -> Hashable:
    """What two calls must have in common to take as long."""
    if isinstance(value, Tensor):
        return _like(value)
    if isinstance(value, list | tuple):
        return tuple(map(_looks, value))
    if isinstance(value, Mapping):
        return tuple((name, _looks(each)) for name, each in value.items())
    return value if isinstance(value, Hashable) else repr(value)


def _like(tensor: Tensor) -> _Like:
    return _Like(tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _kept(leaf: Any) -> Any:
    """Places and masks are real and kept; of the model's tensors there is only how they look."""
    return _like(leaf) if isinstance(leaf, FakeTensor) else leaf


class _Shelf:
    """Numbers to compute with, ever other ones: what a step reads was mostly made too long ago to be in a cache."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.place = 0
        self._numbers: dict[torch.dtype, Tensor] = {}

    def take(self, like: _Like) -> Tensor:
        """A tensor that looks so; its numbers are about 1, so that however often it is changed it stays a number."""
        length = max(0, 1 + sum((size - 1) * step for size, step in zip(like.shape, like.stride, strict=True)))
        if like.dtype not in self._numbers:
            made = torch.zeros(_SHELF // like.dtype.itemsize, dtype=like.dtype, device=self.device)
            self._numbers[like.dtype] = made.uniform_(0.9, 1.1) if like.dtype.is_floating_point else made
        numbers = self._numbers[like.dtype]
        if length > len(numbers) // 2:
            numbers = torch.ones(length, dtype=like.dtype, device=self.device)
        elif self.place + length > len(numbers):
            self.place = 0
        start = 0 if len(numbers) == length else self.place
        # Places stay aligned as an allocator's are.
        self.place = start + -(-length // 64) * 64
        return numbers.as_strided(like.shape, like.stride, start)

    def made(self, leaf: Any) -> Any:
        """An argument of a call."""
        if isinstance(leaf, Tensor | torch.device):
            return leaf.to(self.device) if isinstance(leaf, Tensor) else self.device
        return self.take(leaf) if isinstance(leaf, _Like) else leaf


def _seconds(call: Call, shelf: _Shelf, pace: _Pace) -> float:
    expected = call.flops / pace.flops + call.traffic / pace.traffic
    if expected > _LONGEST or call.traffic > _LARGEST:
        return expected
    leaves, shape = tree_flatten((call.args, dict(call.kwargs)), is_leaf=lambda leaf: isinstance(leaf, _Like))
    copies = min(_COPIES, max(1, _SHELF // max(1, call.traffic)))
    # Of what an operation reads, the first is what the one before has just made.
    first = next((place for place, leaf in enumerate(leaves) if isinstance(leaf, _Like)), -1)
    hot = shelf.made(leaves[first]) if first >= 0 else None
    calls = itertools.cycle(
        tree_unflatten([hot if place == first else shelf.made(leaf) for place, leaf in enumerate(leaves)], shape)
        for _ in range(copies)
    )
    results: deque[Any] = deque(maxlen=copies)

    def work() -> None:
        args, kwargs = next(calls)
        results.append(call.func(*args, **kwargs))

    try:
        return _timed(work, shelf.device)
    except _NOT_ALONE:
        return expected


@torch.no_grad()
def _timed(work: Callable[[], Any], device: torch.device) -> float:
    """Of one round, the least of a few; several in a row where one is too short to measure."""
    best, begun, rounds, count = float("inf"), time.perf_counter(), 0, 1
    while rounds < _ROUNDS or time.perf_counter() - begun < _ENOUGH:
        _wait(device)
        started = time.perf_counter()
        for _ in range(count):
            work()
        _wait(device)
        best = min(best, (time.perf_counter() - started) / count)
        rounds, count = rounds + 1, max(1, min(100, int(_ENOUGH / _ROUNDS / best)))
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _pace(device: torch.device) -> _Pace:
    """What the device does in a second; products as a training step computes them."""
    kind = torch.float32 if device.type == "cpu" else torch.bfloat16
    a = torch.ones(_PRODUCT, _PRODUCT, device=device, dtype=kind)
    b = torch.ones(_COPY, device=device)
    return _Pace(
        2.0 * _PRODUCT**3 / _timed(lambda: a @ a, device), 2.0 * b.nbytes / _timed(lambda: torch.add(b, 1.0), device)
    )
