"""Fluency of greedy answers on a sheet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from expunge.evals.suite import RowValues, Scoring
from expunge.evals.suites.tofu_sheet import Rule, Sheet
from expunge.metrics.fluency import perplexity, perplexity_estimate
from expunge.metrics.ragged import Array

WORDS = ("ngram_entropy", "repetition")
"""What is stored of each answer when it is written."""
FLUENT = Scoring(scores=WORDS)
"""How answers are scored whose fluency is measured."""
RULES = {
    "ngram_entropy": Rule("higher"),
    "repetition": Rule("lower"),
    "gibberish": Rule("higher"),
    "perplexity": Rule("match"),
}
"""End of a metric's name -> how it is judged."""

NOT_STORED = "the fluency of answers was not stored with them: `expunge eval RUN --overwrite` writes them anew"
TOO_SHORT = "no answer has the four words that a repeated run of words needs"
NO_GIBBERISH = "no classifier judged the answers: `expunge eval RUN --gibberish MODEL` asks one"
NO_PERPLEXITY = "no other model judged the answers: `expunge eval RUN --perplexity-model MODEL` asks one"
NO_TOKEN = "no answer has a token for the model that judges them"


def fill_fluency(sheet: Sheet, splits: Iterable[str] = ("forget", "retain")) -> None:
    """Entropy and repetition of the greedy answers of some splits, and what models make of them that were asked.

    An answer that is too short to be measured is what the model chose to write and no gap in the data: it is left out
    and counted, however many there are.

    Args:
        sheet: receives estimates and reasons; that no model was asked is said once, of the first split.
        splits: whose answers; one that is not part of the suite leaves no trace.

    Raises:
        MetricError: rows that cannot be measured.
    """
    there = [split for split in splits if split in sheet.views]
    for split in there:
        for metric in WORDS:
            _fill_words(sheet, split, metric)
        if sheet.views[split].gibberish is not None:
            _mean(sheet, f"{split}.gibberish", split, sheet.views[split].clean(), otherwise=NO_TOKEN)
        if sheet.views[split].perplexity is not None:
            _fill_perplexity(sheet, split)
    if there and all(sheet.views[split].gibberish is None for split in there):
        sheet.skipped[f"{there[0]}.gibberish"] = NO_GIBBERISH
    if there and all(sheet.views[split].perplexity is None for split in there):
        sheet.skipped[f"{there[0]}.perplexity"] = NO_PERPLEXITY


def _fill_words(sheet: Sheet, split: str, metric: str) -> None:
    name, view = f"{split}.{metric}", sheet.views[split]
    if reason := sheet.lacking((split,), ("generations",)):
        sheet.skipped[name] = reason
    elif not view.stores_answer_score(metric):
        sheet.skipped[name] = NOT_STORED
    else:
        _mean(sheet, name, split, view.answer_score(metric), otherwise=TOO_SHORT)


def _fill_perplexity(sheet: Sheet, split: str) -> None:
    name, view = f"{split}.perplexity", sheet.views[split]
    logp = view.judged_logp()
    if not logp.lengths.any():
        sheet.skipped[name] = NO_TOKEN
        return
    weights = view.weights if sheet.intervals else None
    sheet.estimates[name] = perplexity_estimate(logp, weights, name=name, allow_missing=True)
    sheet.rows[name] = RowValues(split, view.row, perplexity(logp), logp.lengths > 0)


def _mean(sheet: Sheet, name: str, split: str, values: Array, *, otherwise: str) -> None:
    """The mean of the values that are there; where none is, the reason."""
    if np.isnan(values).all():
        sheet.skipped[name] = otherwise
    else:
        replace(sheet, allow_missing=True).mean(name, split, lambda _: values)
