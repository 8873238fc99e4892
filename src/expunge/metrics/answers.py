"""Short answers against what is accepted: exact match, F1 of words, and the answer at the end of a chain of thought."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from expunge.errors import MetricError
from expunge.metrics.ragged import Array

Compare = Callable[[list[str], list[str]], float]

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_FINAL = re.compile(r"\banswer is:?\s+(?P<answer>.+?)(?:\.(?=\s|$)|\n|$)", re.IGNORECASE)


def answer_words(text: str) -> list[str]:
    """The words of an answer as question answering compares them: lower case, without punctuation and articles."""
    return _ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def exact_match(
    accepted: Sequence[Sequence[str]],  # R rows of texts
    outputs: Sequence[str],  # R texts
) -> Array:  # (R,)
    """1 where the output's words are those of an accepted answer, in order (`answer_words`), else 0.

    Returns:
        (R,) 0 or 1, not reduced; NaN where no accepted answer has a word.

    Raises:
        MetricError: there are not as many outputs as rows.

    Source:
        TriviaQA (arXiv 1705.03551) by the normalisation of SQuAD (arXiv 1606.05250), as RWKU (2406.10890) scores it.
    """
    return np.array([_best(row, output, _same) for row, output in _paired(accepted, outputs)], dtype=np.float64)


def token_f1(
    accepted: Sequence[Sequence[str]],  # R rows of texts
    outputs: Sequence[str],  # R texts
) -> Array:  # (R,)
    """`2 P R / (P + R)` of the words that output and answer share (`answer_words`), at the best accepted answer.

    Returns:
        (R,) in [0, 1], not reduced; NaN where no accepted answer has a word.

    Raises:
        MetricError: there are not as many outputs as rows.

    Source:
        As `exact_match`.
    """
    return np.array([_best(row, output, _f1) for row, output in _paired(accepted, outputs)], dtype=np.float64)


def final_answer(text: str) -> str:
    """What follows the first "answer is", up to a full stop that ends a word or to the line's end; else all of it."""
    found = _FINAL.search(text)
    return (found["answer"] if found else text).strip()


def final_match(
    references: Sequence[str],  # R texts
    outputs: Sequence[str],  # R texts
) -> Array:  # (R,)
    """1 where the output's `final_answer` is the reference but for case and white space, else 0.

    Returns:
        (R,) 0 or 1, not reduced.

    Raises:
        MetricError: there are not as many outputs as references.

    Source:
        BIG-Bench Hard (arXiv 2210.09261), chain of thought. RWKU's release compares with each character of the
        reference and drops articles, so that "(A)" fits whatever has no word and "False" never fits; not reproduced.
    """
    return np.array(
        [_plain(final_answer(output)) == _plain(row[0]) for row, output in _paired([[r] for r in references], outputs)],
        dtype=np.float64,
    )


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _paired(accepted: Sequence[Sequence[str]], outputs: Sequence[str]) -> list[tuple[Sequence[str], str]]:
    if len(accepted) != len(outputs):
        raise MetricError(
            f"answers are compared row by row, found {len(accepted)} rows and {len(outputs)} outputs",
            hint="give one output per row, in the same order",
        )
    return list(zip(accepted, outputs, strict=True))


def _best(row: Sequence[str], output: str, compare: Compare) -> float:
    wanted = [words for text in row if (words := answer_words(text))]
    said = answer_words(output)
    return max((compare(words, said) for words in wanted), default=float("nan"))


def _same(wanted: list[str], said: list[str]) -> float:
    return float(wanted == said)


def _f1(wanted: list[str], said: list[str]) -> float:
    shared = (Counter(wanted) & Counter(said)).total()
    return 2 * shared / (len(wanted) + len(said))
