"""Text of models and data made safe to look at: nothing hidden, nothing endless. Escaping is the template's."""

from __future__ import annotations

import unicodedata
from typing import NamedTuple

LONGEST = 420
"""Characters shown of one question or answer."""
_JOINERS = {"\u200c", "\u200d"}
"""Invisible, but part of the spelling of several scripts and of emoji."""
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


class Shown(NamedTuple):
    """A text as a page shows it: the text itself, or why it is not there."""

    text: str | None
    note: str | None = None
    """What was cut, or why there is no text."""


def visible(text: str) -> str:
    """`text` with every control, direction and other invisible character written as `‹U+202E›`; newlines stay."""
    return "".join(_visible(character) for character in text.replace("\r\n", "\n"))


def _visible(character: str) -> str:
    if character == "\n" or character in _JOINERS or unicodedata.category(character) not in _HIDDEN:
        return character
    return f"‹U+{ord(character):04X}›"


def shown(text: str, *, longest: int = LONGEST) -> Shown:
    """`text` stripped, made visible and cut to `longest` characters, with a note of how many were left out."""
    if not text.strip():
        return Shown(None, "the answer is empty" if not text else "the answer is white space only")
    text = text.strip()
    if len(text) <= longest:
        return Shown(visible(text))
    more = f"{len(text) - longest:,}".replace(",", "\u202f")
    return Shown(f"{visible(text[:longest])} …", f"cut: {more} more characters")
