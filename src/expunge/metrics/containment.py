"""Whether a text holds an answer word for word."""

from __future__ import annotations

import re
import unicodedata

_WORD = re.compile(r"\w+")


def contains_answer(answer: str, text: str) -> bool:
    """Whether the words of an answer stand in a text one after the other.

    Case, punctuation, white space and forms of one character (NFKC) do not count; a word counts whole, so "Ann" is not
    in "Annual". An answer without words (signs alone) is looked for as it is.

    Args:
        answer: what should have been said, not empty.
        text: what was said.
    """
    words = _words(answer)
    if not words:
        return answer.strip() in text
    return f" {' '.join(words)} " in f" {' '.join(_words(text))} "


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
