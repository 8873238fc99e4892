"""The forget-retain plane: every run as a point, with its intervals as whiskers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from expunge.metrics.score import Score
from expunge.report.figures.svg import (
    Box,
    Figure,
    Scale,
    drawing,
    label,
    line,
    marker,
    rect,
    text_width,
    tick_label,
    ticks,
)
from expunge.report.numbers import interval, number

FULL = Box(0, 0, 1, 1)
CORNER = Box(0, 0.75, 0.25, 1)
"""Where forgetting without damage lies: forget values from left to right, retain values from top to bottom."""

_FRAME = Box(46, 12, 348, 300)
_HEIGHT = 344
_MARKERS = {"this": "circle", "start": "square", "retrained": "diamond", "other": "triangle"}
_ANGLES = (0, 30, -30, 60, -60, 90, -90, 150, -150, 180, 120, -120)
_RINGS = (8, 20, 34, 50, 68, 90, 116, 142)
_TEXT = 12
_PAD = 4
_CROWD = 3

_WORDS = (
    "plane",
    "Forgetting against keeping",
    "Left is forgotten, up is kept: the upper left corner, where the retrained model lies, is the aim, the upper right"
    " is where unlearning starts. Whiskers are 95 % intervals.",
)
_CORNER_WORDS = (
    "plane-corner",
    "The upper left corner, enlarged",
    "The same points where they crowd; the lower and the right edge of this drawing are not 0 and 1.",
)


class Point(NamedTuple):
    """One run in the plane."""

    label: str
    role: str
    """`this`, `start`, `retrained` or `other`."""
    forget: Score
    retain: Score


def in_corner(points: Sequence[Point]) -> list[Point]:
    """The points that crowd in the upper left corner; empty where they are too few to crowd."""
    found = [
        point
        for point in points
        if point.forget.value <= CORNER.right and CORNER.top <= point.retain.value <= CORNER.bottom
    ]
    return found if len(found) >= _CROWD else []


def plane_figure(points: Sequence[Point], *, kept: float | None, part: Box = FULL) -> Figure:
    """Forget against retain extraction strength.

    Args:
        points: the runs, most important first: their labels are placed first.
        kept: the least retain value that counts as kept, drawn as a line; None: none.
        part: which part of the plane, `FULL` or `CORNER`; the points must lie in it.
    """
    x = Scale(part.left, part.right, _FRAME.left + 8, _FRAME.right - 8)
    y = Scale(part.top, part.bottom, _FRAME.bottom - 8, _FRAME.top + 8)
    parts = [rect(_FRAME, "frame"), *_axes(x, y)]
    if kept is not None and part.top <= kept <= part.bottom:
        parts += [line(_FRAME.left, y(kept), _FRAME.right, y(kept), "limit")]
        parts += [label(_FRAME.right - 6, y(kept) + 14, "below: not kept", "note", anchor="end")]
    dots = [(x(point.forget.value), y(point.retain.value)) for point in points]
    taken: list[Box] = []
    if kept is not None and part.top <= kept <= part.bottom:
        taken.append(Box(_FRAME.right - 90, y(kept) + 2, _FRAME.right, y(kept) + 17))
        taken.append(Box(_FRAME.left, y(kept) - 1, _FRAME.right, y(kept) + 1))
    names: list[str] = []
    for point, dot in zip(points, dots, strict=True):
        parts += _whiskers(point, x, y, part)
        box = _place(point.label, dot, [*taken, *(_around(other, own=other == dot) for other in dots)])
        taken.append(box)
        names += _name(point, dot, box)
    parts += [marker(_MARKERS[point.role], *dot, f"point {point.role}")
              for point, dot in reversed(list(zip(points, dots, strict=True)))]  # fmt: skip
    name, title, words = _WORDS if part == FULL else _CORNER_WORDS
    rows = tuple(
        (
            point.label,
            number(point.forget.value),
            interval("", point.forget),
            number(point.retain.value),
            interval("", point.retain),
        )
        for point in points
    )
    headers = ("run", "forget", "95 % interval", "retain", "95 % interval")
    return Figure(name, drawing(name, title, words, _HEIGHT, [*parts, *names]), title, words, headers, rows)


def _axes(x: Scale, y: Scale) -> list[str]:
    parts = []
    for tick in ticks(x.low, x.high, most=6):
        parts += [line(x(tick), _FRAME.top, x(tick), _FRAME.bottom, "grid")]
        parts += [label(x(tick), _FRAME.bottom + 16, tick_label(tick), "tick", anchor="middle")]
    for tick in ticks(y.low, y.high, most=6):
        parts += [line(_FRAME.left, y(tick), _FRAME.right, y(tick), "grid")]
        parts += [label(_FRAME.left - 6, y(tick) + 4, tick_label(tick), "tick", anchor="end")]
    middle = (_FRAME.left + _FRAME.right) / 2
    parts.append(
        label(middle, _HEIGHT - 8, "← forgotten · extraction strength on forget rows", "axis", anchor="middle")
    )
    height = (_FRAME.top + _FRAME.bottom) / 2
    parts.append(
        f'<g transform="translate(8 {height:.0f}) rotate(-90)">'
        + label(0, 0, "extraction strength on retain rows · kept →", "axis", anchor="middle")
        + "</g>"
    )
    return parts


def _whiskers(point: Point, x: Scale, y: Scale, part: Box) -> list[str]:
    """The intervals, cut where the drawn part of the plane ends."""
    px, py = x(point.forget.value), y(point.retain.value)
    parts = []
    if point.forget.low is not None and point.forget.high is not None:
        parts.append(
            line(
                x(max(point.forget.low, part.left)),
                py,
                x(min(point.forget.high, part.right)),
                py,
                f"whisker {point.role}",
            )
        )
    if point.retain.low is not None and point.retain.high is not None:
        parts.append(
            line(
                px,
                y(max(point.retain.low, part.top)),
                px,
                y(min(point.retain.high, part.bottom)),
                f"whisker {point.role}",
            )
        )
    return parts


def _around(dot: tuple[float, float], *, own: bool) -> Box:
    """What a label keeps clear of: its own point, and so far from others' that it cannot be taken for theirs."""
    reach = 7 if own else 22
    return Box(dot[0] - reach, dot[1] - reach, dot[0] + reach, dot[1] + reach)


def _place(text: str, dot: tuple[float, float], taken: Sequence[Box]) -> Box:
    """Where a label lies on nothing: the nearest free place on rings around its point, else the least covered one."""
    width, height = text_width(text, _TEXT) + 2 * _PAD, _TEXT + 4
    inside = Box(_FRAME.left + 2, _FRAME.top + 2, _FRAME.right - 2, _FRAME.bottom - 2)
    candidates = []
    for ring in _RINGS:
        for angle in _ANGLES:
            dx, dy = ring * math.cos(math.radians(angle)), ring * math.sin(math.radians(angle))
            left = dot[0] + dx - (0 if dx > 1 else width if dx < -1 else width / 2)
            box = Box(left, dot[1] + dy - height / 2, left + width, dot[1] + dy + height / 2)
            if inside.holds(box):
                candidates.append(box)
    free = (box for box in candidates if not any(box.overlaps(other) for other in taken))
    fallback = min(candidates, key=lambda box: sum(box.overlaps(other) for other in taken), default=inside)
    return next(free, fallback)


def _name(point: Point, dot: tuple[float, float], box: Box) -> list[str]:
    x, y = dot
    near_x, near_y = min(max(x, box.left), box.right), min(max(y, box.top), box.bottom)
    parts = [label(box.left + _PAD, box.bottom - 4.5, point.label, f"name {point.role}")]
    if math.hypot(near_x - x, near_y - y) > 14:
        parts.insert(0, line(x, y, near_x, near_y, "leader"))
    return parts
