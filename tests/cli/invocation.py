"""What a command line run in this process gave."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Result(NamedTuple):
    code: int
    out: str
    err: str


Invoke = Callable[..., Result]
