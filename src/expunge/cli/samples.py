"""`expunge samples`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge.cli.evaluate import Reference, Start, Suite, profile_name, suite_name
from expunge.cli.output import Json, interval, note, number, print_json
from expunge.cli.report import Redact
from expunge.errors import UsageError

if TYPE_CHECKING:
    from expunge.report.samples import Order, Sample, Samples
    from expunge.report.text import Shown

TEXTS = ("group", "question", "answer", "output")


def samples(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="An evaluated run directory.")],
    worst: Annotated[str | None, typer.Option(metavar="METRIC", help="Rows where it is worst come first.")] = None,
    best: Annotated[str | None, typer.Option(metavar="METRIC", help="Rows where it is best come first.")] = None,
    rows: Annotated[int, typer.Option("--number", "-n", min=1, help="How many rows.")] = 10,
    suite: Suite = None,
    profile: Annotated[str | None, typer.Option(help="The profile evaluated unless given.")] = None,
    reference: Reference = None,
    start: Start = None,
    redact: Redact = False,
    json: Json = False,
) -> None:
    """Show the rows behind a score: question, true answer, what the model said, the row's value.

    Reads the stored tables; needs no model and no torch.
    """
    metric, order = _asked(worst, best)
    from expunge.report.samples import pick_samples

    found = pick_samples(
        run,
        metric,
        order=order,
        number=rows,
        suite=suite_name(suite),
        profile=None if profile is None else profile_name(profile),
        reference=None if reference is None else Path(reference),
        start=None if start is None else Path(start),
        redact=redact,
    )
    if json:
        print_json(_as_json(found))
        return
    for place, sample in enumerate(found.samples):
        _print(sample, found, first=place == 0)
    note(_summary(found))


def _asked(worst: str | None, best: str | None) -> tuple[str, Order]:
    if worst is not None and best is None:
        return worst, "worst"
    if best is not None and worst is None:
        return best, "best"
    raise UsageError(
        "name one metric with --worst or with --best",
        hint="for example --worst forget.rougeL_recall; see `expunge ls metrics`",
    )


def _print(sample: Sample, found: Samples, *, first: bool) -> None:
    """One row as a few lines; whatever a model or a file wrote cannot reach the terminal as commands."""
    if not first:
        typer.echo()
    group = "" if sample.group.text is None else f"  {_line(sample.group)}"
    typer.echo(f"{found.split} row {sample.row} ({_visible(sample.id)})  {found.metric} {number(sample.value)}{group}")
    for label, text in (("question", sample.question), ("answer", sample.answer), ("model", sample.output)):
        typer.echo(f"  {label:<8}  {_line(text)}")


def _line(text: Shown) -> str:
    from expunge.report.text import shown

    said = text if text.text is None else shown(text.text)
    if said.text is None:
        return f"[{said.note}]"
    return said.text.replace("\n", "\n            ") + (f" [{said.note}]" if said.note else "")


def _visible(text: str) -> str:
    from expunge.report.text import visible

    return visible(text)


def _summary(found: Samples) -> str:
    score = found.score
    better = f"to match {number(score.ideal)}" if score.direction == "match" else f"{score.direction} is better"
    total = f"{found.n} rows" if found.n == found.n_total else f"{found.n} of {found.n_total} rows"
    spread = f" {interval(score)}" if score.low is not None else ""
    return (
        f"{found.metric} {number(score.value)}{spread}, {better}: the {len(found.samples)} {found.order} of {total};"
        f" {found.suite} ({found.profile}): {found.path}"
    )


def _as_json(found: Samples) -> dict[str, Any]:
    return {
        "path": str(found.path),
        "suite": found.suite,
        "profile": found.profile,
        "metric": found.metric,
        "split": found.split,
        "order": found.order,
        "score": found.score.to_json(),
        "n": found.n,
        "n_total": found.n_total,
        "samples": [_sample_json(sample) for sample in found.samples],
    }


def _sample_json(sample: Sample) -> dict[str, Any]:
    """Texts as they were stored; what is absent is null, its reason under `absent`."""
    texts: dict[str, Shown] = {name: getattr(sample, name) for name in TEXTS}
    return {
        "row": sample.row,
        "id": sample.id,
        "value": sample.value,
        **{name: text.text for name, text in texts.items()},
        "absent": {name: text.note for name, text in texts.items() if text.text is None},
    }
