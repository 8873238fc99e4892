"""Temperatures other than 1 that a trace was asked for: each is one more log-sum-exp per token, in a column."""

from __future__ import annotations

from collections.abc import Iterable

_LSE = "lse_t"


def lse_column(temperature: float) -> str:
    """The column of `logsumexp(z / T)`: `lse_t0.5`."""
    return f"{_LSE}{temperature:g}"


def temperatures_of(columns: Iterable[str]) -> list[float]:
    """The temperatures that a table has such columns of, in its order."""
    return [float(name.removeprefix(_LSE)) for name in columns if name.startswith(_LSE)]
