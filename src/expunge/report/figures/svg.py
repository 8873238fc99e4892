"""A few SVG elements, scales and ticks. Every figure is 360 units wide, so that its text is readable on a phone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

WIDTH = 360


class Box(NamedTuple):
    """A rectangle: left, top, right, bottom, in units of the drawing."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Whether two rectangles share area."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def holds(self, other: Box) -> bool:
        """Whether the other lies inside."""
        return (
            self.left <= other.left
            and self.top <= other.top
            and self.right >= other.right
            and self.bottom >= other.bottom
        )


@dataclass(frozen=True)
class Figure:
    """A drawing, what it says in words, and its numbers as a table."""

    name: str
    """Unique inside a page; the ids of the drawing start with it."""
    svg: str
    title: str
    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Scale(NamedTuple):
    """Values to positions, linear or logarithmic."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The position of a value."""
        low, high, at = (math.log10(v) for v in (self.low, self.high, value)) if self.log else (
            self.low, self.high, value)  # fmt: skip
        share = 0.5 if high == low else (at - low) / (high - low)
        return self.start + share * (self.stop - self.start)


def ticks(low: float, high: float, *, most: int = 5) -> list[float]:
    """Round numbers in [low, high], at most `most`, in steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / most))
    while True:
        for factor in (1, 2, 5):
            width = step * factor
            first, last = math.ceil(low / width - 1e-9), math.floor(high / width + 1e-9)
            if last - first + 1 <= most:
                return [index * width for index in range(first, last + 1)]
        step *= 10


def decades(low: float, high: float, *, most: int = 5) -> list[float]:
    """Powers of ten in [low, high], thinned to at most `most`."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    every = max(1, math.ceil((last - first + 1) / most))
    return [10.0**power for power in range(first, last + 1, every)]


def tick_label(value: float) -> str:
    """A tick as text: no needless zeros, a true minus sign, a power of ten outside 0.001 to 9999."""
    if value != 0 and not 1e-3 <= abs(value) < 1e4:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e").replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def text_width(text: str, size: float = 12) -> float:
    """A generous estimate of the width of a text in a system font."""
    return len(text) * size * 0.56


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """A straight line of a style-sheet class."""
    return f'<line class="{style}" x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}"/>'


def rect(box: Box, style: str) -> str:
    """A rectangle."""
    width, height = max(box.right - box.left, 0), max(box.bottom - box.top, 0)
    return f'<rect class="{style}" x="{_n(box.left)}" y="{_n(box.top)}" width="{_n(width)}" height="{_n(height)}"/>'


def path(points: Sequence[tuple[float, float]], style: str, *, close: bool = False) -> str:
    """A polyline."""
    steps = " ".join(f"{'M' if not i else 'L'}{_n(x)} {_n(y)}" for i, (x, y) in enumerate(points))
    return f'<path class="{style}" d="{steps}{"Z" if close else ""}"/>'


def label(x: float, y: float, text: str, style: str = "", *, anchor: str = "start") -> str:
    """A text, escaped."""
    return f'<text class="{style}" x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}">{escape(text)}</text>'


def marker(kind: str, x: float, y: float, style: str) -> str:
    """A point that its shape tells apart: `circle`, `square`, `diamond` or `triangle`."""
    r = 5.0
    if kind == "circle":
        return f'<circle class="{style}" cx="{_n(x)}" cy="{_n(y)}" r="{_n(r)}"/>'
    if kind == "square":
        return rect(Box(x - r + 0.5, y - r + 0.5, x + r - 0.5, y + r - 0.5), style)
    if kind == "diamond":
        return path([(x, y - r - 1.5), (x + r + 1.5, y), (x, y + r + 1.5), (x - r - 1.5, y)], style, close=True)
    return path([(x, y - r - 0.5), (x + r + 0.5, y + r - 0.5), (x - r - 0.5, y + r - 0.5)], style, close=True)


def drawing(name: str, title: str, description: str, height: float, parts: Sequence[str]) -> str:
    """The whole `<svg>`, with a title and a description for those who do not see it."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {_n(height)}" role="img"'
        f' aria-labelledby="{name}-title {name}-desc"><title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(description)}</desc>{"".join(parts)}</svg>'
    )


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
