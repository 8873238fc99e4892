"""Put a report or a comparison together and render it as one HTML file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from expunge import __version__
from expunge.report import examples, facts, limits, tables
from expunge.report.collect import Compared, EvaluatedRun
from expunge.report.energies import GuardFacts, guard_of, strips
from expunge.report.figures.curves import curve_figure, curves
from expunge.report.figures.energies import energy_figure
from expunge.report.figures.forms import Form, forms_figure
from expunge.report.figures.plane import CORNER, Point, in_corner, plane_figure
from expunge.report.figures.svg import Figure
from expunge.report.tables import Model
from expunge.report.text import visible
from expunge.report.verdict import FORGET, KEPT, RETAIN, Verdict, judge
from expunge.report.words import FORMS, form_name

_TEMPLATES = Path(__file__).parent / "templates"
_LONGEST_NAME = 24


@dataclass(frozen=True)
class Section:
    """Figures, and what is not shown and why."""

    figures: tuple[Figure, ...]
    notes: tuple[str, ...] = ()


def verdict_of(found: Compared) -> Verdict:
    """The verdict on the run of a report."""
    if found.this.manifest.kind != "unlearn":
        return Verdict("none", f"No verdict: {found.reasons.get('start', 'this run did not unlearn')}.")
    start = None if found.start is None else found.start.scores
    never = None if found.retrained is None else found.retrained.scores
    return judge(found.this.scores, start, never, missing=found.commands)


def report_page(found: Compared, verdict: Verdict, *, key: bytes | None) -> str:
    """The report of one run.

    Args:
        found: the run and what it is compared with.
        verdict: `verdict_of(found)`.
        key: withhold forgotten text and show digests under this key; None: show it.
    """
    guard = guard_of(found.this)
    columns = models(found)
    shown = {who: (model.role, model.run, model.reason) for who, model in columns.items()}
    return render(
        "report.html.j2",
        title=f"Unlearning report: {found.this.name}",
        run=found.this,
        told=facts.told(found.this),
        verdict=verdict,
        reasons=found.reasons,
        columns=list(columns),
        blocks=tables.blocks(columns),
        everything=tables.everything(columns),
        skipped=tables.skipped(columns),
        training=_training(found.this),
        energy=_energy(found.this, guard),
        plane=_plane(found),
        forms=forms_section(columns),
        chosen=examples.choose(found.this, shown, threshold=guard.threshold, key=key),
        how_chosen=examples.HOW,
        redacted=key is not None,
        settings=facts.settings(found.this),
        given=facts.as_yaml(found.this.manifest.given),
        resolved=facts.as_yaml(found.this.manifest.resolved),
        commands=facts.commands(found),
        provenance=facts.provenance(found),
        splits=facts.splits(found.this),
        weaknesses=limits.weaknesses(found),
        limits=limits.always(found),
    )


def models(found: Compared) -> dict[str, Model]:
    """The three columns of a report."""
    return {
        "before": Model("start", found.start, found.reasons.get("start")),
        "after": Model("this", found.this),
        "retrained": Model("retrained", found.retrained, found.reasons.get("retrained")),
    }


def _training(run: EvaluatedRun) -> Section:
    found = curves(run.events)
    if not found:
        return Section((), ("This run recorded no training steps.",))
    return Section(tuple(curve_figure(curve, index=index) for index, curve in enumerate(found)))


def _energy(run: EvaluatedRun, guard: GuardFacts) -> Section:
    found, absent = strips(run)
    if not found:
        return Section((), ("Neither forget nor retain rows were traced.",))
    notes = [f"Not measured in this suite: {', '.join(absent)}."] if absent else []
    notes.append(guard.note)
    return Section((energy_figure(found, threshold=guard.threshold),), tuple(notes))


def _plane(found: Compared) -> Section:
    runs = [("this", found.this, found.this.name)]
    runs += [("start", found.start, f"{found.start.name} (before)")] if found.start else []
    if found.retrained:
        name = found.retrained.name
        runs.append(("retrained", found.retrained, name if name == "retrained" else f"{name} (retrained)"))
    runs += [("other", other, other.name) for other in found.others]
    kept = KEPT * found.start.scores[RETAIN].value if found.start and RETAIN in found.start.scores else None
    return plane_section(runs, kept=kept, absent=tuple(found.reasons.values()))


def plane_section(
    runs: Sequence[tuple[str, EvaluatedRun, str]], *, kept: float | None, absent: Sequence[str] = ()
) -> Section:
    """The forget-retain plane.

    Args:
        runs: role, run and label of each point, the most important first.
        kept: the least retain value that counts as kept; None where the starting model is not known.
        absent: why some are not there.
    """
    points, notes = _points(runs)
    notes += [f"Not shown: {reason}." for reason in absent]
    figures = [plane_figure(points, kept=kept)] if points else []
    if crowd := in_corner(points):
        figures.append(plane_figure(crowd, kept=kept, part=CORNER))
    return Section(tuple(figures), tuple(notes))


def _points(runs: Sequence[tuple[str, EvaluatedRun, str]]) -> tuple[list[Point], list[str]]:
    points, notes = [], []
    for role, run, name in runs:
        if FORGET in run.scores and RETAIN in run.scores:
            points.append(Point(_cut(name), role, run.scores[FORGET], run.scores[RETAIN]))
        else:
            notes.append(f"Not shown: {visible(name)}, whose {FORGET} or {RETAIN} was not measured.")
    return points, notes


def forms_section(columns: Mapping[str, Model]) -> Section:
    """Bars of extraction strength per form, forget and retain apart; a note where the suite has one form only."""
    present = {who: model for who, model in columns.items() if model.run is not None}
    notes = [f"Not shown: {model.reason}." for model in columns.values() if model.run is None and model.reason]
    figures = []
    for side, title, caption in _SIDES:
        forms = [form for split, name in _form_splits(side) if (form := _form(split, name, present)).scores]
        if len(forms) > 1:
            roles = {who: model.role for who, model in present.items()}
            figures.append(forms_figure(f"forms-{side}", title, caption, forms, roles))
    if not figures:
        return Section((), ("This suite asks every question in one form, so there is nothing to compare.",))
    return Section(tuple(figures), tuple(notes))


_SIDES = (
    (
        "forget",
        "Forget rows, asked in different ways",
        "A form whose middle bar stands out above the retrained model's is a way to the forgotten facts that is still"
        " open.",
    ),
    ("retain", "Retain rows, asked in different ways", "What is kept should be as long after as it was before."),
)


def _form_splits(side: str) -> list[tuple[str, str]]:
    return [(side, form_name("direct")), *((f"{side}_{form}", form_name(form)) for form in FORMS)]


def _form(split: str, name: str, present: Mapping[str, Model]) -> Form:
    metric = f"{split}.extraction_strength"
    scores = {who: model.run.scores[metric] for who, model in present.items()
              if model.run and metric in model.run.scores}  # fmt: skip
    return Form(name, scores)


def _cut(name: str) -> str:
    name = visible(name)
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def render(template: str, **context: Any) -> str:
    """Fill a page template; everything but our own style sheet and drawings is escaped."""
    page = _environment().get_template(template)
    return page.render(version=__version__, style=Markup((_TEMPLATES / "style.css").read_text("utf-8")), **context)


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["drawing"] = _drawing
    made.filters["visible"] = visible
    made.filters["prose"] = _prose
    return made


def _prose(text: str) -> Markup:
    """A sentence with `commands` in it."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(visible(text)))))


def _drawing(figure: Figure) -> Markup:
    """A drawing is made of our own elements, with every text in it escaped where it was made."""
    return Markup(figure.svg)
