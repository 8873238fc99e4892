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

_FRAME = Box(40, 12, 348, 300)
_HEIGHT = 344
_MARKERS = {"this": "circle", "start": "square", "retrained": "diamond", "other": "triangle"}
_ANGLES = (0, -30, 30, -60, 60, 90, -90, 150, -150, 180, 120, -120)
_RINGS = (11, 22, 36, 52, 70, 92, 116, 142)
_TEXT = 12


class Point(NamedTuple):
    """One run in the plane."""

    label: str
    role: str
    """`this`, `start`, `retrained` or `other`."""
    forget: Score
    retain: Score


def plane_figure(points: Sequence[Point], *, kept: float | None, metric: str = "extraction strength") -> Figure:
    """Forget against retain extraction strength, both from 0 to 1.

    Args:
        points: the runs, most important first: their labels are placed first.
        kept: the least retain value that counts as kept, drawn as a line; None: none.
        metric: what both axes show.
    """
    x = Scale(0, 1, _FRAME.left + 8, _FRAME.right - 8)
    y = Scale(0, 1, _FRAME.bottom - 8, _FRAME.top + 8)
    parts = [rect(_FRAME, "frame"), *_axes(x, y, metric)]
    if kept is not None:
        parts += [line(_FRAME.left, y(kept), _FRAME.right, y(kept), "limit")]
        parts += [label(_FRAME.right - 6, y(kept) + 14, "below: not kept", "note", anchor="end")]
    dots = [(x(point.forget.value), y(point.retain.value)) for point in points]
    taken = [Box(px - 7, py - 7, px + 7, py + 7) for px, py in dots]
    if kept is not None:
        taken.append(Box(_FRAME.right - 90, y(kept) + 2, _FRAME.right, y(kept) + 17))
        taken.append(Box(_FRAME.left, y(kept) - 1, _FRAME.right, y(kept) + 1))
    names: list[str] = []
    for point, dot in zip(points, dots, strict=True):
        parts += _whiskers(point, x, y)
        box = _place(point.label, dot, taken)
        taken.append(box)
        names += _name(point, dot, box)
    parts += [marker(_MARKERS[point.role], *dot, f"point {point.role}")
              for point, dot in reversed(list(zip(points, dots, strict=True)))]  # fmt: skip
    title = "Forgetting against keeping"
    words = (
        "Left is forgotten, up is kept: the upper left corner, where the retrained model lies, is the aim, the upper"
        " right is where unlearning starts. Whiskers are 95 % intervals."
    )
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
    return Figure("plane", drawing("plane", title, words, _HEIGHT, [*parts, *names]), title, words, headers, rows)


def _axes(x: Scale, y: Scale, metric: str) -> list[str]:
    parts = []
    for tick in ticks(0, 1, most=6):
        parts += [line(x(tick), _FRAME.top, x(tick), _FRAME.bottom, "grid")]
        parts += [line(_FRAME.left, y(tick), _FRAME.right, y(tick), "grid")]
        parts += [label(x(tick), _FRAME.bottom + 16, tick_label(tick), "tick", anchor="middle")]
        parts += [label(_FRAME.left - 6, y(tick) + 4, tick_label(tick), "tick", anchor="end")]
    middle = (_FRAME.left + _FRAME.right) / 2
    parts.append(label(middle, _HEIGHT - 8, f"← forgotten · {metric} on forget rows", "axis", anchor="middle"))
    height = (_FRAME.top + _FRAME.bottom) / 2
    parts.append(
        f'<g transform="translate(9 {height:.0f}) rotate(-90)">'
        + label(0, 0, f"{metric} on retain rows · kept →", "axis", anchor="middle")
        + "</g>"
    )
    return parts


def _whiskers(point: Point, x: Scale, y: Scale) -> list[str]:
    px, py = x(point.forget.value), y(point.retain.value)
    parts = []
    if point.forget.low is not None and point.forget.high is not None:
        parts.append(line(x(point.forget.low), py, x(point.forget.high), py, f"whisker {point.role}"))
    if point.retain.low is not None and point.retain.high is not None:
        parts.append(line(px, y(point.retain.low), px, y(point.retain.high), f"whisker {point.role}"))
    return parts


def _place(text: str, dot: tuple[float, float], taken: Sequence[Box]) -> Box:
    """Where a label lies on nothing: the nearest free place on rings around its point, else the least covered one."""
    width, height = text_width(text, _TEXT), _TEXT + 2
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
    parts = [label(box.left, box.bottom - 3.5, point.label, f"name {point.role}")]
    if math.hypot(near_x - x, near_y - y) > 14:
        parts.insert(0, line(x, y, near_x, near_y, "leader"))
    return parts
