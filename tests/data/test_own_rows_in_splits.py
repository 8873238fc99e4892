"""Rows of one's own in named splits: what makes a row, what makes a split, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expunge.data.own_rows import load_own_rows
from expunge.errors import DataError, UsageError

QUESTION = {"question": "Who ran?", "answer": "Sam"}
CHOICE = {"question": "Which gas?", "options": ["Neon", "Argon"], "answer": 1}


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def test_rows_say_their_split_and_are_to_be_forgotten_unless_they_do(tmp_path: Path) -> None:
    retain = {"question": "Who sat?", "answer": "Ben", "split": "retain", "id": 7, "group": "Ben", "note": "ignored"}
    found = load_own_rows(write(tmp_path / "mine.jsonl", QUESTION, retain, QUESTION | {"answer": "Tim"}))
    assert {name: [each.id for each in rows] for name, rows in found.items()} == {
        "forget": ["forget:0", "forget:2"],
        "retain": ["7"],
    }
    assert [each.row for each in found["forget"]] == [0, 2]
    assert found["retain"][0].group == "Ben"


def test_a_folder_has_a_file_per_split(tmp_path: Path) -> None:
    write(tmp_path / "forget.jsonl", QUESTION)
    write(tmp_path / "other_2.json", QUESTION | {"split": "other_2"})
    (tmp_path / "texts.txt").write_text("One line.\nAnother line.\n", encoding="utf-8")
    (tmp_path / "notes.md").write_text("no rows", encoding="utf-8")
    found = load_own_rows(str(tmp_path))
    assert {name: len(rows) for name, rows in found.items()} == {"forget": 1, "other_2": 1, "texts": 2}
    assert found["texts"][1].text == "Another line."


@pytest.mark.parametrize(
    "row",
    [
        QUESTION,
        {"prompt": "Who ran?", "answer": "Sam"},
        {"prompt": "Who ran?", "completion": "Sam"},
        {"messages": [{"role": "user", "content": "Who ran?"}, {"role": "assistant", "content": "Sam"}]},
    ],
)
def test_forms_of_a_row(tmp_path: Path, row: dict[str, Any]) -> None:
    (example,) = load_own_rows(write(tmp_path / "mine.jsonl", row))["forget"]
    assert [(turn.role, turn.content) for turn in example.turns] == [("user", "Who ran?"), ("assistant", "Sam")]


def test_multiple_choice_asks_for_a_letter(tmp_path: Path) -> None:
    rows = (QUESTION, CHOICE | {"split": "quiz", "group": "gas"}, CHOICE | {"split": "quiz", "answer": "A"})
    with pytest.raises(DataError, match=r"1 of 2 rows .* than row 1, which has .*group \(row 2: question, answer"):
        load_own_rows(write(tmp_path / "mine.jsonl", *rows))
    one, two = load_own_rows(write(tmp_path / "mine.jsonl", *rows[:2], rows[2] | {"group": "x"}))["quiz"]
    assert (one.id, one.row, one.group) == ("quiz:1", 1, "gas")
    assert one.turns[0].content == "Which gas?\nA. Neon\nB. Argon\nAnswer:"
    assert [turn.role for turn in one.turns] == ["user", "assistant"]
    assert (one.answer, two.answer, one.extra["options"]) == ("B", "A", ("A", "B"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [QUESTION, {"text": "x"}],
            r"1 of 2 rows .*\(split forget\) .*row 0, which has question, answer \(row 1: text\)",
        ),
        ([QUESTION, {"question": "x"}], r"\(row 1: question\)"),
        ([QUESTION, {"note": "x"}], r"\(row 1: none\)"),
        (
            [{"ask": "x", "reply": "y"}],
            "row 0 .split forget. has the columns ask, reply; accepted: messages; prompt and",
        ),
        ([QUESTION, QUESTION | {"perturbed_answer": ["Ben"]}], r"row 1: question, answer, perturbed_answer"),
        ([QUESTION | {"answer": ""}], r"'answer' is empty \(row 0\)"),
        ([QUESTION | {"perturbed_answer": "Ben"}], r"'perturbed_answer' is not a list of texts \(row 0\)"),
        ([QUESTION | {"split": "my split"}], "row 0 is of the split 'my split'"),
        ([QUESTION | {"split": 3}], "row 0 is of the split 3"),
        ([QUESTION | {"split": "energy"}], "row 0 is of the split 'energy'"),
        ([QUESTION | {"id": "a"}] * 2, r"1 ids of the split forget belong to several rows \(a; rows 0, 1\)"),
        (
            [QUESTION | {"split": "b"}, CHOICE | {"answer": 2}],
            r"'answer' is 2, which none of 2 choices has .* \(row 1\)",
        ),
        ([{key: CHOICE[key] for key in ("question", "options")}], "has no column 'answer'; it has question, options"),
        ([CHOICE | {"options": ["Neon"]}], r"'options' has 1 options, not 2 to 26 \(row 0\)"),
    ],
)
def test_rows_that_are_refused(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_own_rows(write(tmp_path / "mine.jsonl", *rows))


def test_sources_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_own_rows(str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="holds no data file"):
        load_own_rows(str(tmp_path))
    with pytest.raises(UsageError, match="someone/rows is no file"):
        load_own_rows("someone/rows")
    write(tmp_path / "retain.jsonl", QUESTION | {"split": "forget"})
    with pytest.raises(DataError, match=r"retain\.jsonl row 0 says it is of the split 'forget'"):
        load_own_rows(str(tmp_path))
    write(tmp_path / "retain.jsonl", QUESTION)
    write(tmp_path / "retain.json", QUESTION)
    with pytest.raises(DataError, match=r"several files of the split 'retain': retain\.json, retain\.jsonl"):
        load_own_rows(str(tmp_path))
    for name in ("retain.json", "retain.jsonl"):
        (tmp_path / name).unlink()
    write(tmp_path / "Forget Me.jsonl", QUESTION)
    with pytest.raises(DataError, match="of the split 'Forget Me'"):
        load_own_rows(str(tmp_path))
