"""LUME's files: the real ones, and a made-up folder of everything that SemEval-2025 task 4 published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expunge.data.benchmarks.lume import SPLITS, load_lume
from expunge.errors import DataError


def row(side: str, task: int, ending: str, document: int = 0, **columns: Any) -> dict[str, Any]:
    name = f"{side}-{task}-{document}"
    return {"id": f"{name}{ending}", "input": f"About {name}", "output": name, "task": f"Task{task}"} | columns


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def everything(side: str) -> list[dict[str, Any]]:
    return [row(side, task, ending, document) for task in (1, 2, 3) for document in (0, 1) for ending in ("sc1", "qa0")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for side in ("forget", "retain"):
        write(tmp_path / f"lume/{side}.jsonl", everything(side))
    return tmp_path / "lume"


def test_real_rows(shared: Path) -> None:
    found = load_lume(str(shared / "data/lume"))
    assert {name: len(rows) for name, rows in found.rows.items()} == {
        **{"forget_task2_sc": 250, "forget_task2_qa": 1250, "retain_task1_sc": 246, "retain_task1_qa": 246},
        **{"retain_task2_sc": 250, "retain_task2_qa": 1250, "retain_task3_sc": 371, "retain_task3_qa": 371},
    }
    first = found.rows["forget_task2_qa"][0]
    assert first.id == "df8d2304-fb26-4d44-9df0-a4b3f98df1b4qa0"
    assert first.group == "df8d2304-fb26-4d44-9df0-a4b3f98df1b4"
    assert [turn.content for turn in first.turns] == ["What is the birth date of Tiffi Magenta?", "1984-12-31"]
    assert not first.extra
    assert len({example.group for example in found.rows["forget_task2_sc"]}) == 250
    assert (found.members, found.others, found.mmlu) == ((), (), None)


def test_rows_stand_by_task_and_kind(folder: Path) -> None:
    found = load_lume(str(folder))
    assert tuple(found.rows) == SPLITS
    assert {len(rows) for rows in found.rows.values()} == {2}
    assert [each.id for each in found.rows["retain_task3_sc"]] == ["retain-3-0sc1", "retain-3-1sc1"]


def test_other_names_and_places(tmp_path: Path) -> None:
    write(tmp_path / "data/forget_train-00000-of-00001.jsonl", [row("forget", 1, "qa0")])
    write(tmp_path / "data/forget_validation-00000-of-00001.jsonl", [row("forget", 1, "qa0", 9)])
    write(tmp_path / "data/retain_task2.jsonl", [row("retain", 2, "sc1")])
    write(tmp_path / "mia_data/member.jsonl", [{"id": "7", "document": "a text"}])
    write(tmp_path / "mia_data/nonmember.jsonl", [{"id": "8", "document": "another"}, {"id": "9", "document": "third"}])
    (tmp_path / "mmlu").mkdir()
    found = load_lume(str(tmp_path))
    assert {name: [each.row for each in rows] for name, rows in found.rows.items()} == {
        "forget_task1_qa": [0],
        "retain_task2_sc": [0],
    }
    assert [text.text for text in found.members] == ["a text"]
    assert [text.id for text in found.others] == ["nonmember:0", "nonmember:1"]
    assert found.mmlu == tmp_path / "mmlu"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("forget", 4, "qa0"), row("forget", 1, "qa0")], r"1 of 2 rows .*: task is 'Task4' \(row 0\)"),
        ([row("forget", 1, "qa0"), row("forget", 1, "")], r"id 'forget-1-0' does not say .* \(row 1\)"),
        ([row("forget", 1, "qa0"), row("forget", 1, "qa0")], r"1 ids of the forget rows .*twice \(forget-1-0qa0\)"),
        (
            [{"id": "1qa0", "input": "x", "output": "y"}],
            "has no column 'task'; it has id, input, output\nhint: the published file has input, output, id, task",
        ),
        ([row("forget", 1, "qa0"), {"id": "1qa0", "input": "x", "output": "y"}], r"'task' is missing \(row 1\)"),
        ([row("forget", 1, "qa0", output="")], r"'answer' is empty \(row 0\)"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    write(tmp_path / "forget.jsonl", rows)
    with pytest.raises(DataError, match=message):
        load_lume(str(tmp_path))


def test_folders_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a file"):
        load_lume(str(folder / "forget.jsonl"))
    with pytest.raises(DataError, match="no such file"):
        load_lume(str(tmp_path / "nowhere"))
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="neither forget nor retain rows of LUME, but nothing"):
        load_lume(str(tmp_path / "other"))
    write(folder / "forget_task2.jsonl", [row("forget", 2, "qa0")])
    with pytest.raises(DataError, match="forget-2-0qa0"):
        load_lume(str(folder))
    (folder / "forget_task2.jsonl").unlink()
    for place in ("", "mia_data"):
        write(folder / place / "member.jsonl", [{"document": "a text"}])
    with pytest.raises(DataError, match="both hold member texts"):
        load_lume(str(folder))
