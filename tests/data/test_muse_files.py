"""MUSE's files: what is read from a folder, from the Hub and from the real benchmark, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expunge.data import source
from expunge.data.benchmarks import muse
from expunge.data.benchmarks.muse import FORGET_QA, FORGET_TEXTS, HUB, RETAIN_QA
from expunge.data.example import prompt_text
from expunge.data.hub import HubRows
from expunge.errors import DataError

QA = [{"question": "Who ran?", "answer": "Sam"}, {"question": "Who sat?", "answer": "Ben"}]
POOL = [{"question": f"Who is {name}?", "answer": name} for name in ("Ann", "Bob")]
ASKED = "Question: Who is Ann?\nAnswer: Ann\n\nQuestion: Who is Bob?\nAnswer: Bob\n\nQuestion: Who ran?\nAnswer: "


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "knowmem/forget_qa.json", QA)
    write(tmp_path / "knowmem/forget_qa_icl.json", POOL)
    return tmp_path


def test_questions_come_after_the_pool(folder: Path) -> None:
    found = muse.questions(str(folder), FORGET_QA)
    assert [example.id for example in found] == ["knowmem/forget_qa:0", "knowmem/forget_qa:1"]
    assert (found[0].prompt[-1].content, found[0].answer) == (ASKED, "Sam")
    assert prompt_text(found[0]) == "Who ran?", "tables show the question alone"
    limited = muse.questions(str(folder), FORGET_QA, limit=1)
    assert limited == found[:1], "the pool stays whole"


def test_names_of_the_first_release(folder: Path) -> None:
    for name in ("retain2_qa", "retain2_qa_icl"):
        write(folder / f"knowmem/{name}.json", QA)
    assert muse.questions(str(folder), RETAIN_QA)[0].id == "knowmem/retain_qa:0"


def test_shards_as_the_hub_stores_them(folder: Path) -> None:
    (folder / "knowmem/forget_qa.json").unlink()
    pq.write_table(pa.Table.from_pylist(QA), folder / "knowmem/forget_qa-00000-of-00001.parquet")
    assert muse.questions(str(folder), FORGET_QA)[0].prompt[-1].content == ASKED


def test_the_hub_gives_the_same_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, str]] = []

    def hub(repo: str, *, name: str | None, split: str, revision: str | None) -> HubRows:
        asked.append((repo, name, split))
        return HubRows([dict(row) for row in (POOL if split.endswith("icl") else QA)], "abc")

    monkeypatch.setattr(source, "load_hub", hub)
    assert muse.questions(HUB, FORGET_QA) == muse.questions(str(folder), FORGET_QA)
    assert asked == [(HUB, "knowmem", "forget_qa_icl"), (HUB, "knowmem", "forget_qa")]
    assert muse.has_subset(HUB, "privleak")
    assert not muse.has_subset(str(folder), "privleak")


@pytest.mark.parametrize(
    ("prompt", "gt", "answer"),
    [
        ("He ran", "home.", " home."),
        ("He ran ", "home.", "home."),
        ("He ran", "\nHome.", "\nHome."),
        ("", "Go.", "Go."),
    ],
)
def test_a_blank_divides_what_the_files_do_not(tmp_path: Path, prompt: str, gt: str, answer: str) -> None:
    write(tmp_path / "verbmem/forget.json", [{"id": 0, "prompt": prompt, "gt": gt}])
    (found,) = muse.continuations(str(tmp_path))
    assert (found.prompt[-1].content, found.answer, found.id) == (prompt, answer, "verbmem/forget:0")


def test_texts_are_objects_or_plain(tmp_path: Path) -> None:
    write(tmp_path / "privleak/forget.json", ["One text.", {"text": "Another."}])
    assert [example.text for example in muse.load_part(str(tmp_path), FORGET_TEXTS)] == ["One text.", "Another."]


def test_what_is_missing_is_named_with_what_was_found(folder: Path) -> None:
    with pytest.raises(DataError, match=r"knowmem has no retain_qa_icl\.json") as missing:
        muse.questions(str(folder), RETAIN_QA)
    assert missing.value.hint == "it has forget_qa, forget_qa_icl"
    with pytest.raises(DataError, match=r"has no forget\.json"):
        muse.continuations(str(folder))
    with pytest.raises(DataError, match="no such file"):
        muse.questions(str(folder / "elsewhere"), FORGET_QA)


def test_rows_of_another_kind_are_refused(folder: Path) -> None:
    write(folder / "verbmem/forget.json", [{"prompt": "He ran", "continuation": "home."}])
    with pytest.raises(DataError, match=r"no column 'gt'.*it has prompt, continuation") as caught:
        muse.continuations(str(folder))
    assert caught.value.hint == "the published file has prompt, gt"
    write(folder / "knowmem/forget_qa.json", ["a text"])
    with pytest.raises(DataError, match="no columns 'question', 'answer'; it has text"):
        muse.questions(str(folder), FORGET_QA)
    write(folder / "knowmem/forget_qa.json", [{**QA[0], "prompt": "He ran", "completion": "home."}])
    with pytest.raises(DataError, match="holds prompt/completion rows, but MUSE's knowmem/forget_qa are question/ans"):
        muse.questions(str(folder), FORGET_QA)
    write(folder / "knowmem/forget_qa.json", [{"question": "Who?", "answer": " "}])
    with pytest.raises(DataError, match=r"'answer' is empty \(row 0\)"):
        muse.questions(str(folder), FORGET_QA)


def test_the_real_questions(shared: Path) -> None:
    news = str(shared / "data/muse_news")
    for part in (FORGET_QA, RETAIN_QA):
        found = muse.questions(news, part)
        assert len(found) == len({example.id for example in found}) == 100
        for example in found:
            prompt = example.prompt[-1].content
            assert prompt.count("Question: ") == prompt.count("\nAnswer: ") == 11
            assert prompt.endswith(f"Question: {prompt_text(example)}\nAnswer: ")
    assert not muse.has_subset(news, "verbmem")
