"""What each loss term did while the run trained: one small panel per term."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from expunge.report.figures.svg import (
    Box,
    Figure,
    Scale,
    decades,
    drawing,
    label,
    line,
    path,
    rect,
    tick_label,
    ticks,
)
from expunge.report.numbers import number, plural

NOT_A_TERM = frozenset(
    {"event", "step", "total", "epoch", "lr", "grad_norm", "tokens", "seconds", "tokens_per_s", "eta_s", "memory_mb"}
)
"""Fields of a step event that are not loss terms."""

_WHAT = {
    "loss": "the weighted sum that is minimised",
    "forget": "the forget term",
    "retain": "the retain term",
    "train": "the training loss",
}
_HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 176, 46, 336, 12, 138
_MOST = 70
_RATIO = 50
"""Positive values that span more than this factor are drawn on a logarithmic axis ..."""
_DEEPEST = 1e7
"""... unless they span more than this: one value next to zero would flatten all others."""


class Curve(NamedTuple):
    """One term over the steps."""

    term: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    broken: int = 0
    """Steps whose value was not finite; they are not among the others."""


def curves(events: Sequence[Mapping[str, object]]) -> list[Curve]:
    """The loss terms that `events.jsonl` holds, total first."""
    steps = [event for event in events if event.get("event") == "step"]
    terms = dict.fromkeys(
        key
        for event in steps
        for key, value in event.items()
        if key not in NOT_A_TERM and isinstance(value, int | float) and not isinstance(value, bool)
    )
    found = [curve for curve in (_curve(term, steps) for term in terms) if curve.steps]
    # A run with one term minimises that term: its total says the same again.
    if len(found) == 2 and found[0].values == found[1].values:
        found = found[1:]
    return found


def _curve(term: str, events: Sequence[Mapping[str, object]]) -> Curve:
    points = [
        (step, float(value))
        for event in events
        if isinstance(step := event.get("step"), int) and isinstance(value := event.get(term), int | float)
    ]
    good = [(step, value) for step, value in points if math.isfinite(value)]
    return Curve(term, tuple(step for step, _ in good), tuple(value for _, value in good), len(points) - len(good))


def curve_figure(curve: Curve, *, index: int) -> Figure:
    """One panel."""
    steps, means, lows, highs = _thinned(curve)
    log = _RATIO < (max(curve.values) / min(curve.values) if min(curve.values) > 0 else 0) < _DEEPEST
    low, high = _range(curve.values, log=log)
    x = Scale(min(curve.steps), max(curve.steps), _LEFT, _RIGHT)
    y = Scale(low, high, _BOTTOM, _TOP, log)
    parts = [rect(Box(_LEFT, _TOP, _RIGHT, _BOTTOM), "frame")]
    for tick in decades(low, high) if log else ticks(low, high):
        parts += [line(_LEFT, y(tick), _RIGHT, y(tick), "grid")]
        parts += [label(_LEFT - 6, y(tick) + 4, tick_label(tick), "tick", anchor="end")]
    for tick in ticks(min(curve.steps), max(curve.steps)):
        parts += [label(x(tick), _BOTTOM + 16, tick_label(tick), "tick", anchor="middle")]
    band = [(x(s), y(v)) for s, v in zip(steps, highs, strict=True)]
    band += [(x(s), y(v)) for s, v in zip(reversed(steps), reversed(lows), strict=True)]
    if len(steps) < len(curve.steps):
        parts.append(path(band, "band", close=True))
    parts.append(path([(x(s), y(v)) for s, v in zip(steps, means, strict=True)], "curve"))
    parts.append(label((_LEFT + _RIGHT) / 2, _HEIGHT - 6, "optimizer step", "axis", anchor="middle"))
    first, last = number(curve.values[0]), number(curve.values[-1])
    what = _WHAT.get(curve.term, f"the term {curve.term.replace('_', ' ')}")
    scale = ", logarithmic axis" if log else ""
    title = f"{curve.term}: {what}"
    words = f"From {first} at step {curve.steps[0]} to {last} at step {curve.steps[-1]}{scale}."
    if curve.broken:
        words += f" {plural(curve.broken, 'step')} had a value that is not finite and cannot be drawn."
    name = f"curve-{index}"
    return Figure(name, drawing(name, title, words, _HEIGHT, parts), title, words, ("step", curve.term), _table(curve))


def _range(values: Sequence[float], *, log: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if log:
        return low / 1.3, high * 1.3
    pad = 0.06 * (high - low) or 0.5
    return min(low - pad, 0) if 0 <= low < 0.2 * high else low - pad, high + pad


def _thinned(curve: Curve) -> tuple[list[int], list[float], list[float], list[float]]:
    """At most `_MOST` points: the mean, the lowest and the highest of as many neighbouring steps as that takes."""
    width = -(-len(curve.steps) // _MOST)
    cut = [slice(i, i + width) for i in range(0, len(curve.steps), width)]
    values = [curve.values[part] for part in cut]
    return (
        [curve.steps[part][len(curve.steps[part]) // 2] for part in cut],
        [sum(v) / len(v) for v in values],
        [min(v) for v in values],
        [max(v) for v in values],
    )


def _table(curve: Curve) -> tuple[tuple[str, ...], ...]:
    """Some twelve steps, the first and the last among them."""
    last = len(curve.steps) - 1
    places = sorted({round(i * last / 11) for i in range(12)}) if last > 11 else range(last + 1)
    return tuple((str(curve.steps[place]), number(curve.values[place])) for place in places)
