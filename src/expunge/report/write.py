"""Write the files: a report with its model card, or a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from expunge.errors import UsageError
from expunge.report.card import write_card
from expunge.report.collect import Compared, compared
from expunge.report.page import report_page, verdict_of
from expunge.report.verdict import Verdict
from expunge.runs.redact import redaction_key
from expunge.runs.store import atomic_write_text

REPORT = "report.html"


@dataclass(frozen=True)
class Written:
    """What `expunge report` wrote and found."""

    path: Path
    card: Path | None
    """The model card; None where the run holds no model, or a card that is somebody's own."""
    verdict: Verdict
    compared: Compared


def file_to_write(out: Path | None, default: Path) -> Path:
    """The file asked for.

    Raises:
        UsageError: it is a folder.
    """
    path = out or default
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint=f"name a file, such as --out {path / default.name}")
    return path


def write_report(
    run: Path,
    *,
    start: Path | None = None,
    reference: Path | None = None,
    runs: Sequence[Path] = (),
    out: Path | None = None,
    redact: bool = False,
) -> Written:
    """Write the report of an evaluated run as one HTML file, and the card beside its weights.

    Args:
        run: the run directory.
        start: the evaluated starting model; found from the run's manifest unless given.
        reference: the evaluated retrained model; unless given, the run beside this one that its metrics name.
        runs: more runs for the plane.
        out: the file; `report.html` in the run unless given.
        redact: replace the text of forget rows by ids and digests under a key that stays in the run.

    Returns:
        The paths and the verdict.

    Raises:
        UsageError: a run that is not there, half-written or not evaluated; a place that cannot be written to.
        MetricError: runs that were not measured on the same rows with the same template.
        StoppedError: the disk is full; an older report stays as it was.
    """
    found = compared(run, start=start, reference=reference, others=runs)
    path = file_to_write(out, found.this.path / REPORT)
    verdict = verdict_of(found)
    key = redaction_key(found.this.path) if redact else None
    atomic_write_text(path, report_page(found, verdict, key=key))
    return Written(path, write_card(found, verdict, key=key), verdict, found)
