"""Several runs on one page: who is who, their verdicts, the plane, every number, and the same ten questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from expunge.report import examples, facts, tables
from expunge.report.collect import EvaluatedRun, Scores, measured_against, together, yardsticks
from expunge.report.page import forms_section, plane_section, render
from expunge.report.tables import Model
from expunge.report.verdict import KEPT, RETAIN, Verdict, judge
from expunge.report.write import file_to_write
from expunge.runs.redact import redaction_key
from expunge.runs.run import differing
from expunge.runs.store import atomic_write_text

COMPARISON = Path("comparison.html")


@dataclass(frozen=True)
class WrittenComparison:
    """What `expunge compare` wrote and found."""

    path: Path
    verdicts: Mapping[str, Verdict]
    """Name of an unlearned run -> the verdict on it."""


class Judged(NamedTuple):
    """One run on the page."""

    name: str
    role: str
    told: str
    verdict: Verdict | None


def write_comparison(runs: Sequence[Path], *, out: Path | None = None, redact: bool = False) -> WrittenComparison:
    """Write a comparison of evaluated runs as one HTML file.

    The starting model is the run whose weights the others were unlearned from, the retrained model the one whose
    weights their metrics were computed with. A verdict needs both: those of the first unlearned run are added where
    they are at hand and were not named.

    Args:
        runs: two or more run directories.
        out: the file; `comparison.html` in the current directory unless given.
        redact: replace the text of forget rows by ids and digests under a key that stays in the first run.

    Raises:
        UsageError: fewer than two runs, or one that is not there, half-written or not evaluated.
        MetricError: runs that were not measured on the same rows with the same template.
        StoppedError: the disk is full.
    """
    path = file_to_write(out, COMPARISON)
    found = together(runs)
    found += yardsticks(found)
    key = redaction_key(found[0].path) if redact else None
    columns = _columns(found)
    judged = [_judged(name, model, columns) for name, model in columns.items()]
    atomic_write_text(path, _page(columns, judged, key=key))
    return WrittenComparison(path, {one.name: one.verdict for one in judged if one.verdict is not None})


def _columns(found: Sequence[EvaluatedRun]) -> dict[str, Model]:
    """Unlearned runs first, then the starting and the retrained model."""
    starts = {run.manifest.model.digest for run in found if run.manifest.kind == "unlearn" and run.manifest.model}
    yardsticks = {run.reference.get("model_digest") for run in found if run.reference}
    retrained = next((run for run in found if run.model_digest in yardsticks), None)
    start = next((run for run in found if run.model_digest in starts), None)
    made: dict[str, Model] = {}
    for run, name in zip(found, _names(found), strict=True):
        if run is retrained:
            role = "retrained"
        else:
            role = "start" if run.model_digest in starts else "this" if run.manifest.kind == "unlearn" else "other"
        made[name] = Model(role, measured_against(run, retrained, start))
    order = {"this": 0, "other": 1, "start": 2, "retrained": 3}
    return dict(sorted(made.items(), key=lambda item: order[item[1].role]))


def _names(found: Sequence[EvaluatedRun]) -> list[str]:
    """Folder names, with as much of their parents as tells them apart; of one run's evaluations, theirs as well."""
    paths = [run.path.resolve() for run in found]
    places = [
        path / run.stored.folder.name if paths.count(path) > 1 else path for path, run in zip(paths, found, strict=True)
    ]
    for depth in range(1, max(len(place.parts) for place in places)):
        names = ["/".join(place.parts[-depth:]) for place in places]
        if len(set(names)) == len(names):
            return names
    return [str(place) for place in places]


def _judged(name: str, model: Model, columns: Mapping[str, Model]) -> Judged:
    run = model.run
    assert run is not None, "every column of a comparison is a run"
    if model.role != "this":
        what = {"start": "The starting model.", "retrained": "The retrained model."}
        return Judged(name, model.role, what.get(model.role, facts.told(run)), None)
    start, retrained = _scores(columns, "start"), _scores(columns, "retrained")
    return Judged(name, model.role, facts.told(run), judge(run.scores, start, retrained))


def _scores(columns: Mapping[str, Model], role: str) -> Scores | None:
    return next((model.run.scores for model in columns.values() if model.role == role and model.run), None)


def _page(columns: Mapping[str, Model], judged: Sequence[Judged], *, key: bytes | None) -> str:
    runs = [(model.role, model.run, name) for name, model in columns.items() if model.run]
    start = _scores(columns, "start")
    kept = KEPT * start[RETAIN].value if start and RETAIN in start else None
    first = runs[0][1]
    shown = {name: (model.role, model.run, model.reason) for name, model in columns.items()}
    return render(
        "compare.html.j2",
        title=f"Comparison: {', '.join(columns)}",
        judged=judged,
        suite=f"{first.stored.suite} ({first.stored.profile})",
        columns=list(columns),
        blocks=tables.blocks(columns),
        everything=tables.everything(columns),
        plane=plane_section(runs, kept=kept),
        forms=forms_section(columns),
        chosen=examples.choose(first, shown, threshold=None, key=key),
        how_chosen=examples.HOW,
        redacted=key is not None,
        differences=_differences([run for role, run, _ in runs if role == "this"]),
    )


def _differences(runs: Sequence[EvaluatedRun]) -> list[tuple[str, list[str]]]:
    """For each unlearned run after the first, the settings that differ from the first one's."""
    if len(runs) < 2:
        return []
    first = runs[0]
    settings = first.manifest.resolved
    return [(f"{first.name} → {run.name}", differing(settings, run.manifest.resolved)) for run in runs[1:]]
