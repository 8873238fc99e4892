"""Whether a row to forget is also a row to keep."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from expunge.data.example import Example
from expunge.errors import DataError

Key = tuple[tuple[str, str], ...]


def check_overlap(forget: Sequence[Example], retain: Sequence[Example]) -> list[str]:
    """Compare two sets after NFKC and white-space folding.

    Args:
        forget: rows to forget.
        retain: rows to keep.

    Returns:
        Warnings: one if forget and retain share prompts with different answers, else none. Raw texts have no prompt.

    Raises:
        DataError: rows equal in prompt and answer: the method would be told to erase and to keep the same text.
    """
    kept = {_whole(example): example for example in reversed(retain)}
    same = [(example, kept[_whole(example)]) for example in forget if _whole(example) in kept]
    if same:
        raise DataError(
            f"{len(same)} of {len(forget)} forget examples are also retain examples: {_pairs(same)}",
            hint="remove them from data.forget or data.retain (rows: cuts a source)",
        )
    prompts = {_fold(example.prompt): example for example in reversed(retain) if example.prompt}
    asked = [(example, prompts[_fold(example.prompt)]) for example in forget if _fold(example.prompt) in prompts]
    if not asked:
        return []
    return [f"{len(asked)} forget prompts are also retain prompts, with other answers: {_pairs(asked)}"]


def repeated(ours: Sequence[Example], theirs: Sequence[Example]) -> int:
    """How many of our rows are, in prompt and answer, among theirs."""
    known = {_whole(example) for example in theirs}
    return sum(_whole(example) in known for example in ours)


def _whole(example: Example) -> Key:
    return _fold(example.turns or (("text", example.text),))


def _fold(turns: Sequence[tuple[str, str]]) -> Key:
    return tuple((role, " ".join(unicodedata.normalize("NFKC", content).split())) for role, content in turns)


def _pairs(pairs: Sequence[tuple[Example, Example]], *, limit: int = 5) -> str:
    shown = ", ".join(f"forget row {ours.row} = retain row {theirs.row}" for ours, theirs in pairs[:limit])
    return shown + (f" and {len(pairs) - limit} more" if len(pairs) > limit else "")
