"""The rows behind a score, worst or best first: what was asked, what is true, what the model said. Tables alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from expunge.catalog import unknown
from expunge.errors import MetricError, UsageError
from expunge.evals.recompute import Remeasured, remeasure
from expunge.evals.suite import RowValues, Tables
from expunge.evals.suites.leak_sheet import SCORES
from expunge.metrics.leak_names import read_leak_name
from expunge.metrics.ragged import Array
from expunge.metrics.score import Score
from expunge.report.text import Shown
from expunge.report.withheld import PURGED, Hide, same_words
from expunge.runs.redact import redaction_key

Order = Literal["worst", "best"]

SHORT = {"rouge": "L_recall"}
"""What may be left out at the end of a metric's name."""
NOT_GENERATED = "no answer was generated"
NOT_IN_LOG = "the log holds no such text"


class Sample(NamedTuple):
    """One row of a split. A text is as it was stored, or absent with the reason (`Shown.note`)."""

    row: int
    id: str
    group: Shown
    """Person, author or document; absent also where the row has none."""
    value: float
    """The metric's own value of this row, one of those that its score is the mean of; of an AUC the share of the other
    split's rows that it scores above, ties half."""
    question: Shown
    answer: Shown
    """The true one."""
    output: Shown
    """What the model said: greedily, or of the answers a Leak@k was measured on the one that gives most away."""


class Samples(NamedTuple):
    """The rows asked for, and the score they belong to."""

    path: Path
    """The evaluation."""
    suite: str
    profile: str
    metric: str
    split: str
    order: Order
    score: Score
    n: int
    """Rows of the split that can be measured."""
    n_total: int
    """Rows of the split."""
    samples: tuple[Sample, ...]


def pick_samples(
    run: Path,
    metric: str,
    *,
    order: Order = "worst",
    number: int = 10,
    suite: str | None = None,
    profile: str | None = None,
    reference: Path | None = None,
    start: Path | None = None,
    redact: bool = False,
) -> Samples:
    """The rows of an evaluation at which a metric is worst or best; needs no model and no torch, and writes no number.

    Which end is worst follows from the metric's direction: the highest values where lower is better, the lowest where
    higher is, and those farthest from the ideal where the ideal is to be matched. Equal values keep the order of the
    rows. Rows with nothing to measure are left out.

    Args:
        run: an evaluated run directory, or one evaluation folder; also an imported log, by its own names.
        metric: a name of the evaluation that is a mean over the rows of one split, e.g. `forget.rougeL_recall` (or
            `forget.rouge`), or an
            AUC, which is one of the rows of its first split.
        order: which end comes first.
        number: how many rows, at least 1.
        suite: which suite's tables, where the run has several.
        profile: whose definitions; the evaluated profile unless said.
        reference: the evaluated retrained run; gives ideals.
        start: the evaluated starting run.
        redact: replace the text of forget rows, and answers that are not the true one, by digests under a key that
            stays in the run. A purged evaluation has no text either way.

    Raises:
        UsageError: no such evaluation or metric; one that is no mean over rows; one whose ideal is not known.
        MetricError: the metric was skipped, or tables that it cannot be computed from.
        DataError: tables that cannot be read.
    """
    if number < 1:
        raise UsageError(f"{number} rows cannot be shown", hint="ask for 1 or more")
    # Reading rows is no verdict: a metric that misses some of them is shown all the same, with their number.
    again = remeasure(run, suite=suite, profile=profile, reference=reference, start=start, allow_missing=True)
    metric = metric if metric in again.measured.rows else f"{metric}{SHORT.get(metric.rpartition('.')[2], '')}"
    rows = _rows_of(again, metric)
    score = again.measured.scores[metric]
    chosen = _sorted(rows, _badness(rows.values, score, metric), order)[:number]
    home = _run_of(again.stored.folder)
    hide = Hide.of(rows.split, redaction_key(home) if redact else None)
    texts = _texts(again.tables, rows.split)
    absent = NOT_IN_LOG if again.stored.logged else PURGED
    for row, output in _drawn(again.tables, metric).items():
        texts[row]["output"] = output
    samples = tuple(
        _sample(texts[int(rows.row[index])], value=float(rows.values[index]), hide=hide, absent=absent)
        for index in chosen
    )
    return Samples(
        again.stored.folder,
        again.stored.suite,
        again.profile,
        metric,
        rows.split,
        order,
        score,
        n=int(rows.valid.sum()),
        n_total=len(rows.row),
        samples=samples,
    )


def _rows_of(again: Remeasured, metric: str) -> RowValues:
    measured = again.measured
    if metric in measured.rows:
        return measured.rows[metric]
    if metric in measured.skipped:
        raise MetricError(
            f"{metric} was not measured: {measured.skipped[metric]}", hint="give what it needs, or name another metric"
        )
    if metric in measured.scores:
        ending = metric.rpartition(".")[2]
        first = sorted(measured.rows, key=lambda name: name.rpartition(".")[2] != ending)[:6]
        raise UsageError(
            f"{metric} is not a mean over the rows of one split, so no row has a value of it",
            hint=f"name another: {', '.join(first)}{', ...' if len(measured.rows) > len(first) else ''}",
        )
    raise unknown("metric", metric, list(measured.rows))


def _badness(values: Array, score: Score, metric: str) -> Array:
    """Higher is worse."""
    if score.direction != "match":
        return values if score.direction == "lower" else np.negative(values)
    if score.ideal is None:
        raise UsageError(
            f"{metric} is to match the retrained model's value, which is not known here",
            hint="name an evaluated retrained run: --reference RUN",
        )
    return np.abs(values - score.ideal)


def _sorted(rows: RowValues, badness: Array, order: Order) -> list[int]:
    """Indices of the valid rows, in the order asked for; equal ones as they are numbered."""
    keys = np.negative(badness) if order == "worst" else badness
    return [int(index) for index in np.lexsort((rows.row, keys)) if rows.valid[index]]


def _run_of(folder: Path) -> Path:
    """The run directory an evaluation lies in; one that lies alone is its own."""
    inside = folder.resolve()
    return inside.parents[1] if inside.parent.name == "evals" else folder


def _texts(tables: Tables, split: str) -> dict[int, dict[str, Any]]:
    """Row number -> id, group, prompt, target and output; without the last where none was generated."""
    asked = tables.trace.filter(pc.equal(tables.trace["variant"], "answer"))
    found = {row["row"]: row for row in _of(asked, split, "row", "id", "group", "prompt", "target")}
    for row in _of(tables.generations, split, "row", "output"):
        if row["row"] in found:
            found[row["row"]]["output"] = row["output"]
    return found


def _drawn(tables: Tables, metric: str) -> dict[int, str | None]:
    """Row number -> the sampled answer that gives most away by the metric's score; empty for other metrics."""
    leak = read_leak_name(metric)
    if leak is None or leak.score not in SCORES or tables.samples is None:
        return {}
    column = SCORES[leak.score]
    found = _of(tables.samples, leak.split, "row", "temperature", "top_p", "output", column)
    mine = [each for each in found if (each["temperature"], each["top_p"]) == leak.cell]
    best: dict[int, dict[str, Any]] = {}
    for each in mine:
        if each["row"] not in best or each[column] > best[each["row"]][column]:
            best[each["row"]] = each
    return {row: each["output"] for row, each in best.items()}


def _of(table: pa.Table, split: str, *columns: str) -> list[dict[str, Any]]:
    mine = table.filter(pc.equal(table["split"], split)).select(list(columns))
    return list(mine.to_pylist())


def _sample(row: dict[str, Any], *, value: float, hide: Hide, absent: str) -> Sample:
    """A row as it is shown; `absent` says why there is no text where a text belongs."""
    truth, said = row["target"], row.get("output")
    exact = None if truth is None or said is None else same_words(said, truth)
    return Sample(
        row["row"],
        row["id"],
        _as_stored(hide, row["group"], "the row has no group"),
        value,
        _as_stored(hide, row["prompt"], absent),
        _as_stored(hide, truth, absent),
        _as_stored(hide.output(exact=exact), said, absent if "output" in row else NOT_GENERATED),
    )


def _as_stored(hide: Hide, text: str | None, absent: str) -> Shown:
    """Uncut, unless it is withheld."""
    return hide(text, absent) if text is None or hide.key is not None else Shown(text)
