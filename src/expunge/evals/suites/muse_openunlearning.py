"""The `openunlearning` profile of the MUSE suite: that project's definitions and names.

It differs from the canonical one in ROUGE, which stems words and compares with the whole continuation, in the last
token of a continuation or text, which is left out of hits and Min-K whatever it is, and in 1e-10 in a denominator.
"""

from __future__ import annotations

import numpy as np

from expunge.evals.suites.muse_splits import FORGET, FORGET_TEXTS, HOLDOUT, NO_RETRAINED, RETAIN, VERBATIM, lacking
from expunge.evals.suites.tofu_openunlearning import (
    MEMBERSHIP,
    MEMORIZATION,
    NOT_LOGGED,
    fill_attacks,
    fill_privleak,
    logged,
)
from expunge.evals.suites.tofu_sheet import Rule, Sheet, Views
from expunge.metrics.memorization import exact_memorization, extraction_strength
from expunge.metrics.ragged import Array, Ragged
from expunge.metrics.view import SplitView

ROUGE = {"forget_knowmem_ROUGE": FORGET, "retain_knowmem_ROUGE": RETAIN, "forget_verbmem_ROUGE": VERBATIM}
"""Metric -> the split whose greedy answers it scores."""


def rule(name: str) -> Rule:
    """How a metric of the log is judged."""
    if name == "privleak":
        return Rule("match", 0.0)
    if name.startswith("mia_"):
        return Rule("match")
    return Rule("higher" if name.startswith("retain") else "lower")


def fill(sheet: Sheet, reference: Views | None) -> None:
    """Compute every metric of the log for one model."""
    for name, split in ROUGE.items():
        if reason := lacking(sheet, split):
            sheet.skipped[name] = reason
        else:
            sheet.mean(name, split, lambda view: view.generated("rougeL_f1"), ("generations",))
    _memorization(sheet)
    fill_attacks(sheet, reference, members=FORGET_TEXTS)
    fill_privleak(sheet, reference, members=FORGET_TEXTS)
    if reason := lacking(sheet, HOLDOUT):
        sheet.skipped |= dict.fromkeys((*MEMBERSHIP, "privleak"), reason)
    elif reference is None and not logged(sheet):
        sheet.skipped["privleak"] = NO_RETRAINED


def _memorization(sheet: Sheet) -> None:
    if reason := lacking(sheet, VERBATIM):
        sheet.skipped |= dict.fromkeys(MEMORIZATION, reason)
        return
    recorded = sheet.views[VERBATIM].recorded
    if recorded is None:
        sheet.mean("extraction_strength", VERBATIM, _strength)
        sheet.mean("exact_memorization", VERBATIM, lambda view: exact_memorization(_hits(view)))
        return
    for name in MEMORIZATION:
        if name in recorded:
            sheet.mean(name, VERBATIM, lambda view, name=name: recorded[name])  # type: ignore[misc]
        else:
            sheet.skipped[name] = NOT_LOGGED


def _strength(view: SplitView) -> Array:
    hits = _hits(view)
    return np.where(hits.lengths > 0, extraction_strength(hits, floor="one_over_n"), 0.0)


def _hits(view: SplitView) -> Ragged:
    """Hits of a continuation without its last token: a continuation has no end token that could be the last."""
    hits = view.answers("hit", "no_eos")
    return hits.select(hits.position < hits.lengths[hits.row] - 1)
