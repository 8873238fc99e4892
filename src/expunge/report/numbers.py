"""Numbers as people read them."""

from __future__ import annotations

from expunge.metrics.score import Score

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SMALL = 0.0005


def number(value: float | None) -> str:
    """Three decimals, or a power of ten where those would read 0.000; an en dash for None."""
    if value is None:
        return "–"
    if value != 0 and abs(value) < _SMALL:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return _minus(f"{mantissa}\u00a0×\u00a010{str(int(exponent)).translate(_RAISED)}")
    if abs(value) >= 100:
        return _minus(f"{value:,.0f}".replace(",", "\u202f"))
    text = f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return _minus(text.rstrip("0").rstrip(".") if value == int(value) else text)


def percent(value: float | None) -> str:
    """`96.2 %`."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}".removesuffix(".0") + "\u00a0%"


def count(value: int) -> str:
    """`12 345`, with a thin space between thousands."""
    return f"{value:,}".replace(",", "\u202f")


def is_rate(name: str) -> bool:
    """Whether a metric is a share of decisions, read in percent."""
    return name.startswith("guard.")


def in_unit(name: str, value: float | None) -> str:
    """A value of the metric `name` in its unit."""
    return percent(value) if is_rate(name) else number(value)


def interval(name: str, score: Score) -> str:
    """`[0.010, 0.016]`, empty where no interval is defined."""
    if score.low is None or score.high is None:
        return ""
    return f"[{in_unit(name, score.low)}, {in_unit(name, score.high)}]"


def rows(score: Score) -> str:
    """`400`, or `398 of 400` where rows were left out."""
    return count(score.n) if score.n == score.n_total else f"{count(score.n)} of {count(score.n_total)}"


def plural(amount: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{count(amount)} {noun}" if amount == 1 else f"{count(amount)} {noun}s"


def _minus(text: str) -> str:
    return text.replace("-", "−", 1) if text.startswith("-") else text
