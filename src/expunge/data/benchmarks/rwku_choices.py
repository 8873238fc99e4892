"""RWKU's multiple choice: MMLU with its own five answered questions, and TruthfulQA, both behind a lead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from expunge.data.benchmarks.place import Row, text, texts
from expunge.data.benchmarks.rwku_prompts import ANSWER, MMLU_OPENING, MMLU_QUESTION, SHORT_ANSWER, TRUTHFULQA
from expunge.data.example import ASKED, LEAD, Example, Turn
from expunge.data.formats import BadRowError
from expunge.data.multiple_choice import LETTERS, Question, asked, read_questions
from expunge.errors import DataError


def mmlu(row: Row, number: int) -> Example:
    """A question of MMLU behind its examples; the options are a blank and a letter each.

    Raises:
        BadRowError: the question, an option or an example cannot be used.
    """
    question, shots = _question(row), _shots(row.get("examples"))
    before = "".join(f"Question: {asked(shot)} {LETTERS[shot.answer]}\n\n" for shot in shots)
    # Every question but the last one says where its answer belongs; the last one's is the lead.
    last = f"Question: {asked(question)}".removesuffix(f"\n{ANSWER}")
    prompt = MMLU_OPENING.format(text(row, "task").replace("_", " ")) + before + MMLU_QUESTION.format(last)
    options = tuple(f" {letter}" for letter in LETTERS[: len(question.choices)])
    return _made("mmlu", row, number, prompt, ANSWER, options, question.answer, question.question)


def truthful(row: Row, number: int) -> Example:
    """A question of TruthfulQA behind six answered ones; the options are the answers of MC1, one of which is right.

    Raises:
        BadRowError: the question or its answers cannot be used.
    """
    question = text(row, "question")
    choices, right = _targets(row.get("mc1_targets"), "mc1_targets")
    if len(right) != 1:
        raise BadRowError(f"'mc1_targets' has {len(right)} right answers, not 1")
    options = tuple(f" {choice}" for choice in choices)
    return _made("truthful", row, number, TRUTHFULQA.format(question), SHORT_ANSWER, options, right[0], question)


def truthful_several(row: Row, number: int) -> Example:
    """The same with the answers of MC2, of which several are right (extra column `right`).

    Raises:
        BadRowError: the question or its answers cannot be used.
    """
    question = text(row, "question")
    choices, right = _targets(row.get("mc2_targets"), "mc2_targets")
    if not right or len(right) == len(choices):
        raise BadRowError(f"'mc2_targets' has {len(right)} right answers of {len(choices)}: there is nothing to choose")
    options = tuple(f" {choice}" for choice in choices)
    made = _made("truthful_mc2", row, number, TRUTHFULQA.format(question), SHORT_ANSWER, options, right[0], question)
    return replace(made, extra=MappingProxyType({**made.extra, "right": tuple(right)}))


def _made(
    stem: str, row: Row, number: int, prompt: str, lead: str, options: tuple[str, ...], gold: int, question: str
) -> Example:
    turns = (Turn("user", prompt), Turn(LEAD, lead), Turn("assistant", options[gold]))
    extra: dict[str, Any] = {"options": options, "gold": gold, ASKED: question}
    if isinstance(row.get("subject"), str):
        extra["subject"] = row["subject"]
    return Example(f"{stem}:{number}", number, turns, extra=MappingProxyType(extra))


def _question(row: Row) -> Question:
    try:
        return read_questions([row], origin="a row")[0]
    except DataError as error:
        raise BadRowError(_reason(error)) from error


def _shots(value: Any) -> list[Question]:
    if (
        not isinstance(value, Sequence)
        or isinstance(value, str)
        or not all(isinstance(shot, Mapping) for shot in value)
    ):
        raise BadRowError("'examples' is not a list of questions")
    try:
        return read_questions(value, origin="'examples'") if value else []
    except DataError as error:
        raise BadRowError(_reason(error)) from error


def _reason(error: DataError) -> str:
    """What is wrong, without the place: the row is named around it."""
    return error.message.partition(" cannot be used: ")[2].rpartition(" (row")[0] or error.message


def _targets(value: Any, column: str) -> tuple[tuple[str, ...], list[int]]:
    """The choices, and which of them are right."""
    if not isinstance(value, Mapping):
        raise BadRowError(f"{column!r} is not an object with 'choices' and 'labels'")
    choices, labels = texts(value, "choices"), value.get("labels")
    if not isinstance(labels, Sequence) or len(labels) != len(choices) or not set(labels) <= {0, 1}:
        raise BadRowError(f"{column!r} has no 'labels' of 0 or 1, one for each choice")
    return choices, [place for place, label in enumerate(labels) if label == 1]
