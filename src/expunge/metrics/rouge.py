"""ROUGE of generated answers, by the `rouge_score` package."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np

from expunge.errors import MetricError
from expunge.metrics.ragged import Array

_WORD = re.compile("[a-z0-9]")


class Rouge(NamedTuple):
    """Of one answer; each in [0, 1]."""

    rouge1_recall: float
    rougeL_recall: float  # noqa: N815  (the name of the measure and of its column)
    rougeL_f1: float  # noqa: N815


class RougeProfile(NamedTuple):
    """How a benchmark scores an answer: published numbers of two profiles do not compare."""

    stem: bool
    """Porter-stem words of more than three letters."""
    measure: Literal["rouge1_recall", "rougeL_recall", "rougeL_f1"]
    """Recall ignores what an answer says besides the reference; F1 counts it against the answer."""


TOFU = RougeProfile(stem=True, measure="rougeL_recall")
"""TOFU (arXiv 2401.06121), in its own code and in OpenUnlearning."""
MUSE = RougeProfile(stem=False, measure="rougeL_f1")
"""MUSE (arXiv 2407.06460), in its own code."""
OPENUNLEARNING_MUSE = RougeProfile(stem=True, measure="rougeL_f1")
"""MUSE as OpenUnlearning (arXiv 2506.12618) scores it: with the stemmer."""


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


def rouge_scores(
    references: Sequence[str],  # R texts
    outputs: Sequence[str],  # R texts
    *,
    profile: RougeProfile,
) -> Array:  # (R,)
    """`rouge` of each row, in the measure of a profile.

    Args:
        references: what should have been said.
        outputs: what was said; an empty one scores 0.
        profile: `TOFU`, `MUSE` or `OPENUNLEARNING_MUSE`.

    Returns:
        (R,) in [0, 1], not reduced; NaN where the reference has no word of a-z and 0-9: nothing could score there, and
        a 0 would count as forgotten.

    Raises:
        MetricError: there are not as many outputs as references.

    Source:
        Lin (2004); the profiles name theirs.
    """
    if len(references) != len(outputs):
        raise MetricError(
            f"ROUGE compares row by row, found {len(references)} references and {len(outputs)} outputs",
            hint="give one output per reference, in the same order",
        )
    found = [
        getattr(rouge(reference, output, stem=profile.stem), profile.measure) if _has_words(reference) else np.nan
        for reference, output in zip(references, outputs, strict=True)
    ]
    return np.array(found, dtype=np.float64)


def _has_words(text: str) -> bool:
    return _WORD.search(text.lower()) is not None


@cache
def _scorer(stem: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # pulls in nltk: only where text is scored

    return RougeScorer(["rouge1", "rougeL"], use_stemmer=stem)
