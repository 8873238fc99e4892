"""Drawings: well-formed, named, honest about their numbers, with labels that lie on nothing."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.metrics.score import Score
from expunge.report.figures.curves import curve_figure, curves
from expunge.report.figures.energies import Strip, energy_figure
from expunge.report.figures.forms import Form, forms_figure
from expunge.report.figures.plane import Point, plane_figure
from expunge.report.figures.svg import WIDTH, Box, Figure, Scale, decades, text_width, tick_label, ticks

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)
SHARE = st.floats(0, 1)


def es(value: float) -> Score:
    return Score(value, max(0, value - 0.05), min(1, value + 0.05), 9, 9, None, "lower")


def parsed(figure: Figure) -> ElementTree.Element:
    root = ElementTree.fromstring(figure.svg)
    assert root.get("role") == "img"
    names = [element.get("id") for element in root if element.tag.endswith(("title", "desc"))]
    assert (root.get("aria-labelledby") or "").split() == names
    width, height = (float(part) for part in (root.get("viewBox") or "").split()[2:])
    assert width == WIDTH
    for element in root.iter():
        for name, most in (("x", width), ("x1", width), ("x2", width), ("y1", height), ("y2", height), ("cx", width)):
            if (value := element.get(name)) is not None:
                assert -0.1 <= float(value) <= most + 0.1, ElementTree.tostring(element)
    return root


@settings(derandomize=True)
@given(low=NUMBERS, width=st.floats(1e-6, 1e6), most=st.integers(2, 9))
def test_ticks_are_round_few_and_inside(low: float, width: float, most: int) -> None:
    high = low + width
    found = ticks(low, high, most=most)
    assert len(found) <= most
    slack = 1e-6 * max(abs(low), abs(high), width)
    assert all(low - slack <= tick <= high + slack for tick in found)
    assert found == sorted(found)


def test_ticks_of_known_ranges() -> None:
    assert ticks(0, 1, most=6) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert decades(0.02, 300) == [0.1, 1, 10, 100]
    assert [tick_label(value) for value in (0, -25.0, 0.2, 1e-5, 20000.0)] == ["0", "−25", "0.2", "1e−5", "2e4"]


def test_a_scale_of_one_value_is_in_the_middle() -> None:
    assert Scale(3, 3, 0, 10)(3) == 5


def test_curves_are_the_loss_terms_of_the_steps() -> None:
    events = [{"event": "step", "step": n, "loss": 2.0 / n, "forget": 1.0, "lr": 1e-3, "note": "x"} for n in (1, 2, 3)]
    found = curves([{"event": "references"}, *events])
    assert [curve.term for curve in found] == ["loss", "forget"]
    assert found[0].steps == (1, 2, 3)
    assert curves([]) == []


def test_a_total_that_repeats_its_only_term_is_drawn_once() -> None:
    events = [{"event": "step", "step": n, "loss": 2.0 / n, "train": 2.0 / n} for n in (1, 2, 3)]
    assert [curve.term for curve in curves(events)] == ["train"]


@settings(derandomize=True, max_examples=50, deadline=None)
@given(values=st.lists(st.floats(-1e3, 1e5), min_size=1, max_size=400))
def test_a_curve_of_any_values_is_drawn(values: list[float]) -> None:
    events = [{"event": "step", "step": n + 1, "forget": value} for n, value in enumerate(values)]
    figure = curve_figure(curves(events)[0], index=0)
    parsed(figure)
    assert len(figure.rows) <= 12
    assert figure.rows[-1][0] == str(len(values))


def test_the_energy_figure_counts_every_row_and_what_is_refused() -> None:
    strips = [
        Strip("forget <b>", "forget", np.linspace(-5, 5, 40)),
        Strip("retain", "retain", np.linspace(-25, -15, 60)),
    ]
    figure = energy_figure(strips, threshold=0.0)
    root = parsed(figure)
    assert figure.rows[0][0] == "forget <b>"
    assert figure.rows[0][-1] == "50\u00a0%"
    assert figure.rows[1][-1] == "0\u00a0%"
    assert any("guard refuses above 0" in (element.text or "") for element in root.iter())
    assert "threshold" not in energy_figure(strips, threshold=None).svg


def test_equal_energies_and_a_far_threshold_are_drawn() -> None:
    parsed(energy_figure([Strip("one", "forget", np.full(3, 2.0))], threshold=None))
    parsed(energy_figure([Strip("one", "forget", np.full(3, 2.0))], threshold=900.0))


def labels(figure: Figure) -> list[Box]:
    found = []
    for x, y, text in re.findall(r'<text class="name [a-z]+" x="([\d.-]+)" y="([\d.-]+)"[^>]*>([^<]*)<', figure.svg):
        found.append(Box(float(x), float(y) - 10, float(x) + text_width(text), float(y) + 3))
    return found


@settings(derandomize=True, max_examples=60, deadline=None)
@given(places=st.lists(st.tuples(SHARE, SHARE), min_size=1, max_size=7), kept=st.none() | SHARE)
def test_labels_of_the_plane_do_not_overlap(places: list[tuple[float, float]], kept: float | None) -> None:
    points = [Point(f"run-{n}", "this" if n == 0 else "other", es(x), es(y)) for n, (x, y) in enumerate(places)]
    figure = plane_figure(points, kept=kept)
    parsed(figure)
    boxes = labels(figure)
    assert len(boxes) == len(points)
    assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[n + 1 :])


def test_runs_on_one_spot_keep_their_labels_apart() -> None:
    points = [Point(name, "other", es(0.01), es(0.98)) for name in ("eua", "npo", "grad_diff", "simnpo", "satimp")]
    boxes = labels(plane_figure(points, kept=0.9))
    assert not any(a.overlaps(b) for n, a in enumerate(boxes) for b in boxes[n + 1 :])


def test_forms_say_where_a_model_was_not_measured() -> None:
    forms = [Form("as trained", {"before": es(1.0), "after": es(0.0)}), Form("as a gap", {"before": es(0.5)})]
    figure = forms_figure("forms", "t", "c", forms, {"before": "start", "after": "this"})
    parsed(figure)
    assert "not measured" in figure.svg
    assert figure.rows[1] == ("as a gap", "0.500", "[0.450, 0.550]", "not measured", "")
