"""RWKU's score of a probe: ROUGE-L recall as the `rouge` package has it, which is not that of `rouge_score`.

Words are what stands between white space, so case and punctuation tell them apart; sentences end at every full stop;
and a word counts once, however often it is said.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from expunge.errors import MetricError
from expunge.metrics.ragged import Array

Words = Sequence[str]


def probe_recall(
    references: Sequence[str],  # R texts
    outputs: Sequence[str],  # R texts
) -> Array:  # (R,)
    """Share of a reference's distinct words in the union of the longest common subsequences of its sentences with the
    output's.

    Args:
        references: the true answers.
        outputs: what was said, 30 tokens in the published setting; an empty one scores 0.

    Returns:
        (R,) in [0, 1], not reduced; NaN where the reference has no word.

    Raises:
        MetricError: there are not as many outputs as references.

    Source:
        RWKU (arXiv 2406.10890), whose code calls the `rouge` package. Where a text has nothing but white space between
        two full stops, that package counts an empty word; here it is none.
    """
    if len(references) != len(outputs):
        raise MetricError(
            f"probes are scored row by row, found {len(references)} references and {len(outputs)} outputs",
            hint="give one output per reference, in the same order",
        )
    return np.array([_recall(*pair) for pair in zip(references, outputs, strict=True)], dtype=np.float64)


def _recall(reference: str, output: str) -> float:
    wanted, said = _sentences(reference), _sentences(output)
    distinct = {word for sentence in wanted for word in sentence}
    common = {word for ours in wanted for theirs in said for word in _common(ours, theirs)}
    return len(common) / len(distinct) if distinct else float("nan")


def _sentences(text: str) -> list[Words]:
    return [words for part in text.split(".") if (words := part.split())]


def _common(ours: Words, theirs: Words) -> list[str]:
    """One longest common subsequence, backwards; of several the one the package finds."""
    longest = np.zeros((len(ours) + 1, len(theirs) + 1), dtype=np.int64)
    for i, word in enumerate(ours, start=1):
        for j, other in enumerate(theirs, start=1):
            longest[i, j] = longest[i - 1, j - 1] + 1 if word == other else max(longest[i - 1, j], longest[i, j - 1])
    found: list[str] = []
    i, j = len(ours), len(theirs)
    while i and j:
        if ours[i - 1] == theirs[j - 1]:
            found.append(ours[i - 1])
            i, j = i - 1, j - 1
        elif longest[i - 1, j] > longest[i, j - 1]:
            i -= 1
        else:
            j -= 1
    return found
