"""ROUGE of generated answers, by the `rouge_score` package."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple


class Rouge(NamedTuple):
    """Of one answer; each in [0, 1]."""

    rouge1_recall: float
    rougeL_recall: float  # noqa: N815  (the name of the measure and of its column)
    rougeL_f1: float  # noqa: N815


def rouge(reference: str, output: str, *, stem: bool = True) -> Rouge:
    """Overlap of an output with its reference: shared words (ROUGE-1) and longest common subsequence (ROUGE-L).

    Text is lower-cased and everything but a-z and 0-9 is blanked, so text in other scripts scores 0 and an accented
    letter splits its word. Recall has no length penalty: a rambling output that holds the reference's words scores 1.

    Args:
        reference: what should have been said.
        output: what was said; an empty one scores 0.
        stem: Porter-stem words of more than three letters.

    Source:
        Lin (2004); the settings are TOFU's (arXiv 2401.06121).
    """
    scores = _scorer(stem).score(reference, output)
    long = scores["rougeL"]
    return Rouge(float(scores["rouge1"].recall), float(long.recall), float(long.fmeasure))


@cache
def _scorer(stem: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # pulls in nltk: only where text is scored

    return RougeScorer(["rouge1", "rougeL"], use_stemmer=stem)
