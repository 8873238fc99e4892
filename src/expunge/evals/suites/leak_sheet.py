"""Leak@k on a sheet: the estimate from sampled answers, and the bound that the trace gives without sampling."""

from __future__ import annotations

from functools import partial

from expunge.evals.suites.tofu_sheet import Sheet
from expunge.metrics.leak import exact_leak_at_k, leak_at_k
from expunge.metrics.leak_names import HEADLINE, Cell, leak_name
from expunge.metrics.ragged import Array
from expunge.metrics.view import SplitView

SCORES = {"": "rougeL_recall", "contains": "contains", "entailed": "entailed"}
"""End of a metric's name -> column of the samples that says how much an answer gives away."""
EXACT = "exact"
MOST = 128
"""The largest k that is published, and the one whose bound is always reported: it needs no samples."""
NOT_SAMPLED = "no answers were sampled: `expunge eval RUN --samples N` samples them"


def fill_leak(sheet: Sheet, split: str = "forget") -> None:
    """Leak@k of every split that was sampled from; where `split` was not, its bound alone, and why there is no more.

    Args:
        sheet: receives estimates and reasons.
        split: the rows that were to be forgotten.

    Raises:
        MetricError: rows that cannot be measured.
    """
    fill_sampled(sheet)
    if split in sheet.views:
        if not sheet.views[split].cells:
            sheet.skipped[f"{split}.leak_at_K"] = NOT_SAMPLED
        for k in sorted({*_counts(sheet.views[split]), MOST}):
            for temperature in (1.0, *sheet.views[split].temperatures):
                name = leak_name(split, k, score=EXACT, cell=Cell(temperature, 1.0))
                sheet.mean(name, split, partial(_bound, k=k, temperature=temperature))


def fill_sampled(sheet: Sheet) -> None:
    """Leak@k of every split that was sampled from, and nothing else.

    Raises:
        MetricError: rows that cannot be measured.
    """
    for split, view in sheet.views.items():
        if view.cells:
            _fill_split(sheet, split, view)


def _fill_split(sheet: Sheet, split: str, view: SplitView) -> None:
    scores = {name: column for name, column in SCORES.items() if view.samples and not _empty(view, column)}
    for cell in sorted(view.cells, key=lambda cell: cell != HEADLINE):
        for score, column in scores.items():
            sampled = view.sampled(column, cell)
            for k in _counts(view):
                name = leak_name(split, k, score=score, cell=cell)
                sheet.mean(name, split, lambda _, sampled=sampled, k=k: leak_at_k(sampled, k=k))  # type: ignore[misc]


def _empty(view: SplitView, column: str) -> bool:
    """Whether nobody filled a column."""
    return view.samples is None or view.samples[column].null_count == view.samples.num_rows


def _counts(view: SplitView) -> list[int]:
    """1, 2, 4, ... up to the fewest answers that a row has."""
    if not view.cells:
        return []
    fewest = min(int(view.sampled("logp", cell).lengths.min()) for cell in view.cells)
    return [2**power for power in range(fewest.bit_length())]


def _bound(view: SplitView, *, k: int, temperature: float) -> Array:
    """(R,) chance that k answers hold the row's own word for word."""
    return exact_leak_at_k(view.logp_at(temperature), k=k)
