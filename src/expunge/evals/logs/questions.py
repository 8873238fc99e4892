"""Whether two evaluations were made of the same questions, where one of them is a log without tokens."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

from expunge.errors import MetricError
from expunge.evals.logs.reading import listed
from expunge.metrics.view import SplitView

REFERENCE = "the reference"


def check_same_questions(ours: Mapping[str, SplitView], theirs: Mapping[str, SplitView], *, needed: str | None) -> bool:
    """Refuse to compare evaluations of different questions.

    Every split that both have must have the same row numbers, the `needed` one also as many paraphrases and wrong
    answers, and all the same questions where both hold their text. A question is the same as a rendered prompt that
    holds it; two rendered prompts must be equal, so that two logs are of one template.

    Args:
        ours: the splits that are measured.
        theirs: those of the reference.
        needed: a split that both must have; None: any they share.

    Returns:
        Whether the questions of `needed` (of every shared split that was generated) were compared; False where a log
        holds none, so that only row numbers were.

    Raises:
        MetricError: naming the rows that differ, with the first pair of questions.
    """
    for side, views in (("this evaluation", ours), (REFERENCE, theirs)):
        if needed is not None and needed not in views:
            raise MetricError(f"{side} has no {needed!r} rows", hint="give evaluations of the same suite")
    shared = sorted(ours.keys() & theirs.keys())
    compared = {split: _check(ours[split], theirs[split], paired=split == needed) for split in shared}
    if needed is not None:
        return compared[needed]
    return all(compared[split] for split in shared if ours[split].generations is not None)


def _check(mine: SplitView, other: SplitView, *, paired: bool) -> bool:
    split = mine.split
    if odd := sorted(set(mine.row.tolist()) ^ set(other.row.tolist())):
        raise MetricError(
            f"{split}: {REFERENCE} is of other questions: {len(other)} rows against {len(mine)},"
            f" only one of them has rows {listed(odd)}",
            hint="one of them may have been measured with --limit, or on another forget split (--forget-split): give"
            " the retrained model's log or run over the same rows",
        )
    if paired and _variants(mine) != _variants(other):
        raise MetricError(
            f"{split}: {REFERENCE} has other paraphrases or numbers of wrong answers than this evaluation",
            hint="give a log of the same evaluation",
        )
    here, there = _questions(mine), _questions(other)
    if here is None or there is None:
        return False
    if differing := _differing(here, there):
        first = differing[0]
        raise MetricError(
            f"{split}: {REFERENCE} is of other questions or of another template in {len(differing)} of {len(mine)} rows"
            f" (rows {listed(mine.row[differing].tolist())}); row {int(mine.row[first])} is"
            f" {_short(there[first])} there and {_short(here[first])} here",
            hint="give the retrained model's log for the same forget set, made with the same template",
        )
    return True


def _variants(view: SplitView) -> tuple[bool, list[int]]:
    return view.paraphrase is None, view.perturbed.lengths.tolist()


def _questions(view: SplitView) -> list[str] | None:
    """The prompts in the order of the rows; None where some are not there (a purged table, a log without text)."""
    if view.generations is None:
        return None
    prompts = view.generations["prompt"].to_pylist()
    return None if None in prompts else [_plain(prompt) for prompt in prompts]


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _differing(mine: Sequence[str], other: Sequence[str]) -> list[int]:
    """Where neither prompt holds the other: a question is held by the prompt that a log has rendered from it."""
    return [index for index, (one, two) in enumerate(zip(mine, other, strict=True)) if not (one in two or two in one)]


def _short(prompt: str, *, most: int = 80) -> str:
    return repr(prompt if len(prompt) <= most else f"...{prompt[-most:]}")
