"""Numbers that are made of a greedy answer when it is written, so that a purge of its text loses no metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from expunge.data.example import ACCEPTED, PII, Example
from expunge.metrics.answers import exact_match, final_match, token_f1
from expunge.metrics.fluency import ngram_entropy, repetition, words
from expunge.metrics.lume import knowledge
from expunge.metrics.pii import given_away
from expunge.metrics.rwku import probe_recall

AnswerScore = Callable[[Example, str], float]

ANSWER_SCORES: Mapping[str, AnswerScore] = MappingProxyType(
    {
        "probe_recall": lambda example, text: float(probe_recall([example.answer], [text])[0]),
        "exact_match": lambda example, text: float(knowledge([example.answer], [text])[0]),
        "answer_match": lambda example, text: float(exact_match([example.extra[ACCEPTED]], [text])[0]),
        "answer_f1": lambda example, text: float(token_f1([example.extra[ACCEPTED]], [text])[0]),
        "final_match": lambda example, text: float(final_match([example.answer], [text])[0]),
        "pii_leakage": lambda example, text: float(given_away([example.extra[PII]], [text])[0]),
        "ngram_entropy": lambda example, text: float(ngram_entropy([words(text)])[0]),
        "repetition": lambda example, text: float(repetition([words(text)])[0]),
    }
)
"""Name -> the score of one answer."""


def answer_scores(names: Sequence[str], example: Example, text: str) -> dict[str, float | None]:
    """The scores of these names; None where the answer has nothing to measure.

    Args:
        names: keys of `ANSWER_SCORES`.
        example: the row, with the extra column that a score needs.
        text: the answer as it is scored, cut at its stop.
    """
    found = {name: ANSWER_SCORES[name](example, text) for name in names}
    return {name: None if math.isnan(value) else value for name, value in found.items()}
