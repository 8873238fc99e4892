"""How unfamiliar questions look to the model: one strip per kind of question on one axis, with the threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from expunge.metrics.ragged import Array
from expunge.report.figures.svg import WIDTH, Box, Figure, Scale, drawing, label, line, rect, tick_label, ticks
from expunge.report.numbers import count, number, percent

_LEFT, _RIGHT = 10, 350
_STRIP, _BARS = 66, 40
_BINS = 36
_STYLES = {"forget": "bar-forget", "retain": "bar-retain"}


class Strip(NamedTuple):
    """The energies of one kind of question."""

    label: str
    side: str
    """`forget` or `retain`."""
    values: Array
    """(n,) energies of the last prompt token; higher = unknown."""


def energy_figure(strips: Sequence[Strip], *, threshold: float | None) -> Figure:
    """Histograms under each other; every strip has the same bins, and its tallest bar fills it."""
    everything = np.concatenate([strip.values for strip in strips])
    low, high = float(everything.min()), float(everything.max())
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    pad = 0.03 * (high - low) or 0.5
    x = Scale(low - pad, high + pad, _LEFT, _RIGHT)
    top = 22 if threshold is not None else 4
    bottom = top + _STRIP * len(strips)
    edges = np.linspace(low - pad, high + pad, _BINS + 1)
    parts: list[str] = []
    for tick in ticks(low, high):
        parts += [line(x(tick), top, x(tick), bottom, "grid")]
        parts += [label(x(tick), bottom + 16, tick_label(tick), "tick", anchor="middle")]
    for index, strip in enumerate(strips):
        parts += _strip(strip, edges, x, top + index * _STRIP, threshold)
    if threshold is not None:
        parts += [line(x(threshold), 16, x(threshold), bottom, "threshold"), *_flag(x(threshold), threshold)]
    parts.append(label((_LEFT + _RIGHT) / 2, bottom + 34, "energy of the prompt (higher: less familiar) →", "axis",
                       anchor="middle"))  # fmt: skip
    headers, rows = _table(strips, threshold)
    title = "How unfamiliar each kind of question looks"
    words = _words(strips, threshold)
    return Figure("energy", drawing("energy", title, words, bottom + 42, parts), title, words, headers, rows)


def _strip(strip: Strip, edges: Array, x: Scale, top: float, threshold: float | None) -> list[str]:
    counts = np.histogram(strip.values, bins=edges)[0]
    base = top + _STRIP - 4
    parts = [label(_LEFT, top + 14, strip.label, "name")]
    share = "" if threshold is None else f", {percent(float((strip.values > threshold).mean()))} refused"
    parts.append(label(_RIGHT, top + 14, f"n {count(len(strip.values))}{share}", "note", anchor="end"))
    for index, amount in enumerate(counts.tolist()):
        if amount:
            height = max(amount / max(counts.tolist()) * _BARS, 1)
            box = Box(x(float(edges[index])) + 0.4, base - height, x(float(edges[index + 1])) - 0.4, base)
            parts.append(rect(box, _STYLES[strip.side]))
    middle = x(float(np.median(strip.values)))
    parts += [line(_LEFT, base, _RIGHT, base, "base"), line(middle, base - 6, middle, base + 4, "median")]
    return parts


def _flag(at: float, threshold: float) -> list[str]:
    """The label of the threshold, on the side where there is room."""
    text = f"guard refuses above {number(threshold)}"
    if at > WIDTH / 2:
        return [label(at - 4, 11, f"{text} →", "flag", anchor="end")]
    return [label(at + 4, 11, f"{text} →", "flag")]


def _table(strips: Sequence[Strip], threshold: float | None) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    headers = ("questions", "n", "5 %", "median", "95 %") + (("refused",) if threshold is not None else ())
    rows = []
    for strip in strips:
        low, middle, high = (number(float(v)) for v in np.quantile(strip.values, [0.05, 0.5, 0.95]))
        refused = () if threshold is None else (percent(float((strip.values > threshold).mean())),)
        rows.append((strip.label, count(len(strip.values)), low, middle, high, *refused))
    return headers, tuple(rows)


def _words(strips: Sequence[Strip], threshold: float | None) -> str:
    medians = ", ".join(f"{strip.label} {number(float(np.median(strip.values)))}" for strip in strips)
    line_ = "" if threshold is None else " The dashed line is the guard's threshold; it refuses what lies to its right."
    return (
        "Well separated strips mean that the model can tell, before it says a word, that it does not know."
        f" Median energies (short ticks): {medians}.{line_}"
    )
