"""What kind of device a computation is for, where that decides how it is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_ACTING: ContextVar[str | None] = ContextVar("acting", default=None)


def kind_of(device: torch.device) -> str:
    """`cpu`, `cuda` or `mps`: the device's own, unless a block says otherwise (`acting_as`)."""
    return _ACTING.get() or device.type


@contextmanager
def acting_as(kind: str) -> Iterator[None]:
    """Inside the block every device is taken for one of this kind: how a CPU rehearses what an accelerator will do."""
    before = _ACTING.set(kind)
    try:
        yield
    finally:
        _ACTING.reset(before)
