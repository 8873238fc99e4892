"""The same facts asked in different ways: before, after and retrained, side by side for every form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from expunge.metrics.score import Score
from expunge.report.figures.svg import Box, Figure, Scale, drawing, label, line, rect, tick_label
from expunge.report.numbers import interval, number

_LEFT, _RIGHT = 74, 312
_BAR, _GAP, _HEAD, _FOOT = 11, 3, 19, 9


class Form(NamedTuple):
    """One way to ask, and what each model scores on it."""

    label: str
    scores: Mapping[str, Score]
    """Name of a model -> its score; a model that was not measured is absent."""


def forms_figure(name: str, title: str, caption: str, forms: Sequence[Form], models: Mapping[str, str]) -> Figure:
    """Bars from 0 to 1.

    Args:
        name: unique inside the page.
        title: what is shown.
        caption: what to see.
        forms: the ways to ask.
        models: name of a model -> its role (`this`, `start`, `retrained`, `other`), in the order of the bars.
    """
    x = Scale(0, 1, _LEFT, _RIGHT)
    step = _HEAD + len(models) * (_BAR + _GAP) + _FOOT
    bottom = 2 + len(forms) * step
    parts: list[str] = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts += [line(x(tick), 4, x(tick), bottom, "grid")]
        parts += [label(x(tick), bottom + 14, tick_label(tick), "tick", anchor="middle")]
    for index, form in enumerate(forms):
        parts += _bars(form, models, x, 2 + index * step)
    axis = label((_LEFT + _RIGHT) / 2, bottom + 32, "extraction strength", "axis", anchor="middle")
    headers = ("asked", *(part for model in models for part in (model, "95 % interval")))
    rows = tuple((form.label, *(cell for model in models for cell in _cells(form.scores.get(model)))) for form in forms)
    return Figure(name, drawing(name, title, caption, bottom + 40, [*parts, axis]), title, caption, headers, rows)


def _bars(form: Form, models: Mapping[str, str], x: Scale, top: float) -> list[str]:
    parts = [label(0, top + 14, form.label, "name")]
    for index, (model, role) in enumerate(models.items()):
        y = top + _HEAD + index * (_BAR + _GAP)
        parts.append(label(_LEFT - 6, y + _BAR - 1.5, _short(model), "note", anchor="end"))
        score = form.scores.get(model)
        if score is None:
            parts.append(label(_LEFT + 4, y + _BAR - 1.5, "not measured", "note"))
            continue
        end = x(score.value)
        parts.append(rect(Box(_LEFT, y, end, y + _BAR), f"bar {role}"))
        if score.low is not None and score.high is not None:
            whisker = (x(score.low), y + _BAR / 2, x(score.high), y + _BAR / 2)
            parts += [line(*whisker, "halo"), line(*whisker, "error")]
            end = max(end, x(score.high))
        parts.append(label(end + 5, y + _BAR - 1.5, number(score.value), f"value {role}"))
    return parts


def _cells(score: Score | None) -> tuple[str, str]:
    return ("not measured", "") if score is None else (number(score.value), interval("", score))


def _short(text: str, most: int = 10) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
