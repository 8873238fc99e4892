"""Where the answers are in a rendered conversation, found without knowing the template's markup.

The same conversation is rendered twice more with two different short answers in place of one turn: what both have in
common at the front and at the back is exactly what the template writes around that turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from expunge.data.render import Conversation, Renderer
from expunge.errors import DataError


class Frame(NamedTuple):
    """What a template writes around one turn."""

    head: str
    tail: str


class Region(NamedTuple):
    """Characters of one answer in the rendered text."""

    start: int
    """First supervised character."""
    stop: int
    """One past the answer's own text; the end-of-turn token, if any, follows."""


def frame(renderer: Renderer, turns: Conversation, position: int) -> Frame:
    """What the template writes before and after turn `position`.

    Raises:
        DataError: it does not write the turn at all.
    """
    probes = [
        (*turns[:position], turns[position]._replace(content=text), *turns[position + 1 :]) for text in ("A", "B")
    ]
    one, other = renderer.render(probes, prompt=False)
    if one == other:
        raise DataError(
            f"the template leaves out turn {position} ({turns[position].role}) of a conversation",
            hint="choose another data.template",
        )
    tail = _common_length(one[::-1], other[::-1])
    return Frame(one[: _common_length(one, other)], one[len(one) - tail :])


def _common_length(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def region(renderer: Renderer, turns: Conversation, position: int, text: str) -> Region:
    """The answer at `position` in `text`, the rendered conversation.

    It starts where the prompt of that answer ends; where the template writes a conversation's prompt otherwise than
    the conversation itself (an opened thinking block), at the answer's own first character.

    Raises:
        DataError: the template rewrites what surrounds the answer depending on the answer.
    """
    around = frame(renderer, turns, position)
    if not (text.startswith(around.head) and text.endswith(around.tail)):
        raise DataError(
            f"the chat template changes the conversation around an answer: {turns[position].content[:60]!r}",
            hint="choose another data.template, or data.supervise=last",
        )
    (opening,) = renderer.render([turns[:position]], prompt=True)
    start = len(opening) if text.startswith(opening) else len(around.head)
    return Region(start, len(text) - len(around.tail))


def tokens_after(offsets: Sequence[tuple[int, int]], start: int) -> int:
    """Index of the first token with a character at or after `start`; one that straddles it belongs to the answer."""
    return next((index for index, (_, stop) in enumerate(offsets) if stop > start), len(offsets))
