"""The one form every training and evaluation row takes, whatever file it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

Role = Literal["system", "user", "assistant"]

LEAD = "lead"
"""Role of a prompt's last turn that begins the answer for the model (`Answer:`): it is written as the beginning of the
assistant's turn, and the answer goes on from there."""

ASKED = "asked"
"""Key of `Example.extra`: the question a prompt ends with, where answered ones stand in front of it."""

ACCEPTED = "accepted"
"""Key of `Example.extra`: every answer that is right, where there are several."""

PII = "pii"
"""Key of `Example.extra`: personal data, each a text, that an answer may give away."""


class Turn(NamedTuple):
    """One message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One row: a conversation whose last turn is the answer, or a raw text.

    Exactly one of `turns` and `text` is filled. Question/answer and prompt/completion rows become a user turn and an
    assistant turn.
    """

    id: str
    """Unique inside its dataset and stable between runs, e.g. `forget10:17`."""
    row: int
    """0-based row in the source file, before any slicing: what error messages name."""
    turns: tuple[Turn, ...] = ()
    text: str = ""
    group: str | None = None
    """Person, author or document the row belongs to; intervals are bootstrapped over groups."""
    extra: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Other columns a suite reads: `paraphrased_answer`, `perturbed_answer`, `paraphrased_question`."""

    @property
    def prompt(self) -> tuple[Turn, ...]:
        """The turns before the last one; empty for raw text."""
        return self.turns[:-1]

    @property
    def answer(self) -> str:
        """The last turn's content, or the raw text."""
        return self.turns[-1].content if self.turns else self.text


def prompt_text(example: Example) -> str:
    """What is asked, as one readable string: the question alone where a suite says which it is, else every turn."""
    return str(example.extra.get(ASKED) or turns_text(example.prompt))


def turns_text(turns: Sequence[Turn]) -> str:
    """What the turns say, one after another; of a single question, the question."""
    return "\n".join(turn.content for turn in turns)
