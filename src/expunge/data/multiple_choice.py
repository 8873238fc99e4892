"""Multiple-choice questions: rows of the published format, and the prompt that lm-evaluation-harness makes of them."""

from __future__ import annotations

import ast
import string
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from expunge.data.example import Example, Turn
from expunge.data.formats import BadRowError, read_each, require_columns
from expunge.errors import DataError

LETTERS = string.ascii_uppercase
COLUMNS = ("question", "choices", "answer")
ABOUT = "The following are multiple choice questions (with answers) about {}.\n\n"
"""How the harness opens a prompt; the topic is filled in."""


class Question(NamedTuple):
    """One row."""

    row: int
    """0-based row of its file."""
    question: str
    choices: tuple[str, ...]
    """2 to 26 options."""
    answer: int
    """Index of the right one."""
    subject: str | None = None
    """What the row's own column `subject` says."""


def read_questions(
    rows: Sequence[Mapping[str, Any]],
    *,
    origin: str,
    numbers: Sequence[int] | None = None,
    options: str = "choices",
) -> list[Question]:
    """Rows of WMDP's and MMLU's format: `question`, `choices`, and `answer`, an index or a letter.

    A CSV file holds the list of choices as Python writes it (`['a', 'b']`).

    Args:
        rows: of one file or Hub split.
        origin: its name, for messages.
        numbers: each row's place in its file; unless given, they are all of its rows.
        options: what the column of options is called.

    Raises:
        DataError: no rows, a column that is missing, or rows whose question, options or answer cannot be used; they are
            named.
    """
    if not rows:
        raise DataError(f"{origin} is empty", hint="it must hold at least one question")
    columns = tuple(options if column == "choices" else column for column in COLUMNS)
    require_columns(rows, columns, origin=origin, what="a multiple-choice file")
    places = numbers or range(len(rows))
    return read_each(rows, places, lambda row, number: _question(row, number, options), origin=origin)


def _question(row: Mapping[str, Any], number: int, options: str) -> Question:
    text, subject = row.get("question"), row.get("subject")
    if not isinstance(text, str) or not text.strip():
        raise BadRowError("'question' is empty or not text")
    choices = _choices(row.get(options), options)
    answer = _answer(row.get("answer"), len(choices))
    return Question(number, text, choices, answer, subject if isinstance(subject, str) and subject.strip() else None)


def _choices(value: Any, column: str) -> tuple[str, ...]:
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError) as error:
            raise BadRowError(f"{column!r} is not a list of texts") from error
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise BadRowError(f"{column!r} is not a list of texts")
    if not all(isinstance(choice, str) and choice.strip() for choice in value):
        raise BadRowError(f"{column!r} holds an option that is empty or not text")
    if not 2 <= len(value) <= len(LETTERS):
        raise BadRowError(f"{column!r} has {len(value)} options, not 2 to {len(LETTERS)}")
    return tuple(value)


def _answer(value: Any, count: int) -> int:
    if isinstance(value, str):
        text = value.strip()
        value = LETTERS.index(text) if len(text) == 1 and text in LETTERS else _number(text)
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadRowError("'answer' is neither an index nor a letter")
    if not 0 <= value < count:
        raise BadRowError(f"'answer' is {value}, which none of {count} choices has (they count from 0)")
    return value


def _number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def asked(question: Question) -> str:
    """The question with its lettered options, up to where the letter of the answer belongs."""
    options = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False)]
    return "\n".join([question.question.strip(), *options, "Answer:"])


def to_example(question: Question, *, id: str, about: str, shots: Sequence[Question] = ()) -> Example:
    """A question as a conversation whose answer is the letter of the right option.

    The description is a system turn and the shots stand before the question, which under the template `harness` is
    the harness's prompt letter by letter, and under a chat template the conversation it makes there.

    Args:
        question: what is asked.
        id: the example's.
        about: the topic, in words.
        shots: answered questions to put before it.

    Returns:
        The example, with `options` (every letter, in order) and `gold` (which is right) as extra columns.
    """
    letters = tuple(LETTERS[: len(question.choices)])
    before = "".join(f"{asked(shot)} {LETTERS[shot.answer]}\n\n" for shot in shots)
    turns = (
        Turn("system", ABOUT.format(about)),
        Turn("user", before + asked(question)),
        Turn("assistant", letters[question.answer]),
    )
    extra = MappingProxyType({"options": letters, "gold": question.answer})
    return Example(id=id, row=question.row, turns=turns, extra=extra)
