"""A row cannot be forgotten and kept at once."""

from __future__ import annotations

import pytest

from expunge.data.example import Example, Turn
from expunge.data.source import check_overlap
from expunge.errors import DataError


def qa(row: int, question: str, answer: str) -> Example:
    return Example(id=f"x:{row}", row=row, turns=(Turn("user", question), Turn("assistant", answer)))


def text(row: int, content: str) -> Example:
    return Example(id=f"x:{row}", row=row, text=content)


def test_equal_after_folding_is_an_error_naming_rows() -> None:
    forget = [qa(0, "Who?", "Ada"), qa(5, "Where  is\nit?", "Ｐaris ﬁnally")]
    retain = [qa(2, "When?", "Now"), qa(7, "Where is it?", "Paris finally ")]
    with pytest.raises(DataError, match="1 of 2 forget examples are also retain examples: forget row 5 = retain row 7"):
        check_overlap(forget, retain)


def test_equal_prompts_alone_are_a_warning() -> None:
    (warning,) = check_overlap([qa(0, "Who?", "Ada")], [qa(3, "Who?", "Ben"), qa(4, "Who?", "Cy")])
    assert warning == "1 forget prompts are also retain prompts, with other answers: forget row 0 = retain row 3"


def test_case_and_texts() -> None:
    assert check_overlap([qa(0, "Who?", "ada")], [qa(0, "who?", "ada")]) == []
    assert check_overlap([text(0, "One."), text(1, "Two.")], [text(0, "Three.")]) == []
    with pytest.raises(DataError, match="forget row 1 = retain row 0"):
        check_overlap([text(0, "One."), text(1, "Two.")], [text(0, " Two. ")])
