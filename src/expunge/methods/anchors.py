"""Texts with their anchors (names, places, titles) replaced, and where the tokens of one stand in the other.

Tokens are aligned where they end: outside anchors at the same character, at the end of an anchor with the end of its
replacement, and inside an anchor nowhere. That holds whatever a replacement does to the number of tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from expunge.data.example import Example, Turn
from expunge.errors import DataError


class Span(NamedTuple):
    """One anchor in a text, and what stands for it in the other."""

    anchor: str
    start: int
    stop: int
    new_start: int
    new_stop: int


class Translation(NamedTuple):
    """A text with its anchors replaced."""

    text: str
    spans: tuple[Span, ...]


class Aligned(NamedTuple):
    """The tokens of a text against those of its translation."""

    places: list[int | None]
    """Per token of the text: the token of the translation that ends where it does; None inside anchors."""
    repeated: list[frozenset[int]]
    """Per token of the text: first tokens of the replacements whose anchor the text has named up to here."""


def translate(text: str, anchors: Mapping[str, str]) -> Translation:
    """Replace whole-word anchors, the longest first, by upper and lower case as given."""
    if not anchors:
        return Translation(text, ())
    longest_first = sorted(anchors, key=lambda anchor: (-len(anchor), anchor))
    pattern = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, longest_first)) + r")(?!\w)")
    parts: list[str] = []
    spans: list[Span] = []
    done = length = 0
    for found in pattern.finditer(text):
        between, new = text[done : found.start()], anchors[found[0]]
        length += len(between)
        spans.append(Span(found[0], found.start(), found.end(), length, length + len(new)))
        parts += [between, new]
        length += len(new)
        done = found.end()
    return Translation("".join([*parts, text[done:]]), tuple(spans))


def translated(example: Example, anchors: Mapping[str, str]) -> Example:
    """The row with its anchors replaced in every turn."""
    turns = tuple(Turn(turn.role, translate(turn.content, anchors).text) for turn in example.turns)
    text = translate(example.text, anchors).text
    return replace(example, id=f"{example.id}|generic", turns=turns, text=text)


def align(
    tokenizer: Any, ids: Sequence[int], new_ids: Sequence[int], anchors: Mapping[str, str], *, row: int
) -> Aligned:
    """Align the tokens of a text with those of its translation.

    Args:
        tokenizer: decodes both.
        ids: tokens of the text, markup included.
        new_ids: tokens of the translation.
        anchors: what was replaced.
        row: for the message.

    Raises:
        DataError: what the tokens say is not the text with its anchors replaced: an anchor is part of the markup, or
            the tokenizer does not keep the text.
    """
    text, new_text = _decode(tokenizer, ids), _decode(tokenizer, new_ids)
    translation = translate(text, anchors)
    if translation.text != new_text:
        raise DataError(
            f"forget row {row}: with its anchors replaced the row is not tokenised as its own text is",
            hint="leave out anchors that occur in the chat template, the system prompt or in parts of longer words",
        )
    ends, new_ends = _ends(tokenizer, ids, text), _ends(tokenizer, new_ids, new_text)
    at = {end: place for place, end in enumerate(new_ends)}
    # Of several tokens that end at one character (an empty one among them), only the last is followed by what follows.
    last = {end: place for place, end in enumerate(ends)}
    places = [
        None
        if end is None or last[end] != place or (moved := _moved(end, translation.spans)) is None
        else at.get(moved)
        for place, end in enumerate(ends)
    ]
    return Aligned(places, _repeated(ends, new_ids, new_ends, translation.spans))


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def _ends(tokenizer: Any, ids: Sequence[int], text: str) -> list[int | None]:
    """Characters of `text` up to the end of each token; None in the middle of one."""
    prefixes = [_decode(tokenizer, ids[: stop + 1]) for stop in range(len(ids))]
    return [len(prefix) if text.startswith(prefix) else None for prefix in prefixes]


def _moved(end: int, spans: Sequence[Span]) -> int | None:
    """Where a token that ends here ends in the translation."""
    shift = 0
    for span in spans:
        if end <= span.start:
            break
        if end < span.stop:
            return None
        shift = span.new_stop - span.stop
    return end + shift


def _repeated(
    ends: Sequence[int | None], new_ids: Sequence[int], new_ends: Sequence[int | None], spans: Sequence[Span]
) -> list[frozenset[int]]:
    """The first tokens of a replacement, wherever the translation has it, from the anchor's first mention on.

    What follows a first mention would otherwise learn to name the replacement again and again, under another name than
    the text's.
    """
    firsts: dict[str, set[int]] = {}
    mentioned: dict[str, int] = {}
    for span in spans:
        mentioned.setdefault(span.anchor, span.stop)
        start = next((i for i, end in enumerate(new_ends) if end is not None and end > span.new_start), None)
        if start is not None:
            firsts.setdefault(span.anchor, set()).add(new_ids[start])
    seen: frozenset[int] = frozenset()
    found: list[frozenset[int]] = []
    for end in ends:
        if end is not None:
            seen = frozenset[int]().union(*(firsts.get(a, set()) for a, stop in mentioned.items() if stop <= end))
        found.append(seen)
    return found
