"""Files, folders and Hub ids to examples, and what each kind of bad input says."""

from __future__ import annotations

import csv
import json
import logging
import sys
import types
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expunge.config.schema import SourceSpec
from expunge.data.example import Turn
from expunge.data.source import Loaded, load_examples
from expunge.errors import DataError, HubError, UsageError

ROWS = [{"question": f"Who is {n}?", "answer": f"A writer called {n}."} for n in ("Ada", "Ben", "Cy", "Dee")]


def load(path: Path | str, *, role: str = "forget", **spec: Any) -> Loaded:
    return load_examples(SourceSpec(path=str(path), **spec), tofu="locuslab/TOFU", role=role)


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["lines.jsonl", "lines.json", "array.json", "array.jsonl", "a.csv", "a.parquet", "b"])
def test_the_content_decides_how_a_file_is_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind.startswith("lines"):
        write_lines(path, ROWS)
    elif kind.startswith("array"):
        path.write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
    elif kind.endswith("csv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["question", "answer"])
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    loaded = load(path)
    assert loaded.format == "question/answer"
    assert [(e.prompt[0].content, e.answer) for e in loaded.examples] == [(r["question"], r["answer"]) for r in ROWS]
    assert [e.id for e in loaded.examples] == [f"{path.stem}:{n}" for n in range(4)]
    assert loaded.digest == load(write_lines(tmp_path / "again.jsonl", ROWS)).digest
    assert loaded.revision is None


def test_plain_lines_become_texts(tmp_path: Path) -> None:
    path = tmp_path / "refusals.jsonl"
    path.write_text("I don't know.\n\n  Not that I know of.  \n", encoding="utf-8")
    for place in (path, tmp_path):
        loaded = load(place, role="refusals")
        assert loaded.format == "text"
        assert [e.text for e in loaded.examples] == ["I don't know.", "Not that I know of."]
    (tmp_path / "a.txt").write_text("[INST] is no JSON here\n{neither} is this\n", encoding="utf-8")
    assert [e.text for e in load(tmp_path / "a.txt").examples] == ["[INST] is no JSON here", "{neither} is this"]
    (tmp_path / "lines").write_text('"Quoted" line\n', encoding="utf-8")
    assert [e.text for e in load(tmp_path / "lines").examples] == ['"Quoted" line']


@pytest.mark.parametrize("name", ["nojson.jsonl", "nojson.json"])
def test_lines_that_are_no_json_are_an_error_where_nobody_asked_for_plain_ones(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("\nnot json\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"{name} line 2: invalid JSON") as caught:
        load(tmp_path / name)
    assert ".txt" in str(caught.value.hint)
    with pytest.raises(DataError, match="line 2: invalid JSON"):
        load(tmp_path)


@pytest.mark.parametrize("role", ["refusals", "forget"])
def test_lines_that_are_json_texts_lose_their_quotation_marks(tmp_path: Path, role: str) -> None:
    path = write_lines(tmp_path / "refusal.jsonl", ["I'm not sure.", "Who\u2019s that?"])
    assert [e.text for e in load(path, role=role).examples] == ["I'm not sure.", "Who\u2019s that?"]


def test_a_plain_line_may_begin_with_a_quotation_mark(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('"No" is all I say.\nI pass.\n', encoding="utf-8")
    assert [e.text for e in load(tmp_path / "a.jsonl", role="refusals").examples] == ['"No" is all I say.', "I pass."]


def test_an_array_of_strings_becomes_texts(tmp_path: Path) -> None:
    (tmp_path / "raw.json").write_text(json.dumps(["First news.", "Second news."]), encoding="utf-8")
    assert [e.answer for e in load(tmp_path / "raw.json").examples] == ["First news.", "Second news."]


def test_prompt_and_completion_as_text_or_messages(tmp_path: Path) -> None:
    user, reply = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
    text = load(write_lines(tmp_path / "a.jsonl", [{"prompt": "Hi", "completion": "Hello"}]))
    messages = load(write_lines(tmp_path / "b.jsonl", [{"prompt": [user], "completion": [reply]}]))
    assert text.examples[0].turns == messages.examples[0].turns == (Turn("user", "Hi"), Turn("assistant", "Hello"))
    assert text.format == messages.format == "prompt/completion"


def test_messages_keep_every_turn(tmp_path: Path) -> None:
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "Bye!")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns], "group": 7}
    (example,) = load(write_lines(tmp_path / "a.jsonl", [row])).examples
    assert example.turns == tuple(Turn(*turn) for turn in turns)
    assert example.answer == "Bye!"
    assert example.group == "7"


def test_rows_and_fields(tmp_path: Path) -> None:
    rows = [{"q": f"Who is {n}?", "a": n, "person": n} for n in "abcdef"]
    path = write_lines(tmp_path / "people.jsonl", rows)
    loaded = load(path, rows="2:5", fields={"question": "q", "answer": "a", "group": "person"})
    assert [(e.id, e.row, e.answer, e.group) for e in loaded.examples] == [
        ("people:2", 2, "c", "c"),
        ("people:3", 3, "d", "d"),
        ("people:4", 4, "e", "e"),
    ]
    assert [e.row for e in load(path, rows="::-2", fields={"question": "q", "answer": "a"}).examples] == [5, 3, 1]


def test_extra_columns_are_kept_and_checked(tmp_path: Path) -> None:
    row = {**ROWS[0], "paraphrased_answer": "She writes.", "perturbed_answer": ["No.", "Never."], "other": 1}
    (example,) = load(write_lines(tmp_path / "a.jsonl", [row])).examples
    assert dict(example.extra) == {"paraphrased_answer": "She writes.", "perturbed_answer": ("No.", "Never.")}
    with pytest.raises(DataError, match=r"'perturbed_answer' holds an entry .* \(row 1\)"):
        load(write_lines(tmp_path / "b.jsonl", [row, {**row, "perturbed_answer": ["No.", ""]}]))


def test_sources_add_up_and_ids_stay_unique(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    specs = [
        SourceSpec(path=str(write_lines(tmp_path / "data.jsonl", ROWS[:2]))),
        SourceSpec(path=str(write_lines(tmp_path / "x" / "data.jsonl", [{"text": "A text."}]))),
    ]
    loaded = load_examples(specs, tofu="locuslab/TOFU", role="retain")
    assert [e.id for e in loaded.examples] == ["data:0", "data:1", "data:0@2"]
    assert loaded.format == "question/answer + text"


def test_the_digest_follows_the_content_alone(tmp_path: Path) -> None:
    one = load(write_lines(tmp_path / "a.jsonl", ROWS)).digest
    assert one == load(write_lines(tmp_path / "b.jsonl", [{**row, "note": "x"} for row in ROWS])).digest
    assert one != load(write_lines(tmp_path / "c.jsonl", ROWS[::-1])).digest
    assert one != load(write_lines(tmp_path / "d.jsonl", [{**row, "group": "g"} for row in ROWS])).digest


def test_a_folder_gives_one_split(tmp_path: Path) -> None:
    write_lines(tmp_path / "train-00000-of-00002.jsonl", ROWS[:2])
    write_lines(tmp_path / "train-00001-of-00002.jsonl", ROWS[2:])
    assert len(load(tmp_path).examples) == 4
    write_lines(tmp_path / "test.jsonl", ROWS[:1])
    assert len(load(tmp_path, split="test").examples) == 1
    assert len(load(tmp_path).examples) == 4
    with pytest.raises(DataError, match="has test, train but no 'dev'"):
        load(tmp_path, split="dev")


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write_lines(tmp_path / "forget.jsonl", ROWS)
    with pytest.raises(DataError, match="no such file") as caught:
        load(tmp_path / "forgte.jsonl")
    assert caught.value.hint == f"did you mean {tmp_path / 'forget.jsonl'}?"
    with pytest.raises(DataError, match="no such file") as caught:
        load(tmp_path / "nonexistent")
    assert caught.value.hint == f"nothing in {tmp_path} has a name like it"
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "nowhere" / "forget.jsonl")


@pytest.mark.parametrize("content", ["", "\n\n", "[]"])
def test_an_empty_file_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.jsonl").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match="is empty"):
        load(tmp_path / "a.jsonl")


def test_wrong_columns_list_found_and_accepted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has columns q, a; accepted: messages; prompt and completion;") as caught:
        load(write_lines(tmp_path / "a.jsonl", [{"q": "x", "a": "y"}]))
    assert "fields" in str(caught.value.hint)
    with pytest.raises(DataError, match="has no column 'query'"):
        load(tmp_path / "a.jsonl", fields={"question": "query"})


def test_invalid_json_names_the_line(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", ROWS)
    path.write_text(path.read_text(encoding="utf-8") + '{"question": "Who', encoding="utf-8")
    with pytest.raises(DataError, match="line 5: invalid JSON"):
        load(path)
    (tmp_path / "b.json").write_text('[\n{"question": "Who?",\n "answer": }\n]', encoding="utf-8")
    with pytest.raises(DataError, match="line 3: invalid JSON"):
        load(tmp_path / "b.json")


def test_bad_rows_are_named_all_at_once(tmp_path: Path) -> None:
    rows: list[Any] = [dict(row) for row in ROWS]
    rows[1]["answer"] = 1987
    rows[2]["answer"] = "  "
    rows[3] = {"question": "Who?"}
    with pytest.raises(DataError) as caught:
        load(write_lines(tmp_path / "a.jsonl", rows))
    assert "3 of 4 rows" in caught.value.message
    assert "'answer' is not text (row 1)" in caught.value.message
    assert "'answer' is empty (row 2)" in caught.value.message
    assert "'answer' is missing (row 3)" in caught.value.message
    (tmp_path / "b.json").write_text('["a", 3]', encoding="utf-8")
    with pytest.raises(DataError, match="row 1 is int, not an object"):
        load(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"role": "user", "content": "Hi"}], "the last message is a user message"),
        ([{"role": "assistant", "content": "Hi"}], "no message before it"),
        ([{"content": "Hi"}], "a message without a role"),
        ([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}], "the last message is empty"),
        ("Hi", "not a list of messages"),
    ],
)
def test_conversations_must_end_in_an_answer(tmp_path: Path, messages: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        load(write_lines(tmp_path / "a.jsonl", [{"messages": messages}]))


def test_ragged_csv_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer\nWho?,She, he\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2: more cells than columns"):
        load(tmp_path / "a.csv")


def test_slices_are_checked(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", ROWS)
    for bad in ("3", "a:b", "::0"):
        with pytest.raises(UsageError, match="rows is"):
            load(path, rows=bad)
    with pytest.raises(DataError, match="picks none of its 4 rows"):
        load(path, rows="10:")


def test_no_source_at_all() -> None:
    with pytest.raises(UsageError, match=r"data\.retain is empty"):
        load_examples([], tofu="locuslab/TOFU", role="retain")


def test_the_hub_needs_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError) as caught:
        load("org/name:test")
    assert caught.value.hint == "pip install 'expunge[hub]'"


class Hub:
    """Stands in for the Hub: remembers what was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]]) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self._rows = rows
        module = types.ModuleType("datasets")
        module.load_dataset = self.load_dataset  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "datasets", module)
        info = types.SimpleNamespace(sha="c0ffee")
        monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: info)

    def load_dataset(self, repo: str, name: str | None, *, split: str, revision: str | None) -> Any:
        if repo == "org/gone":
            raise FileNotFoundError("Dataset 'org/gone' doesn't exist on the Hub\nor cannot be accessed.")
        self.asked.append((repo, name, split, revision))
        return types.SimpleNamespace(to_list=lambda: self._rows)


def test_hub_rows_record_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, ROWS)
    loaded = load("org/name:test")
    assert loaded.revision == "c0ffee"
    assert loaded.examples[1].id == "name-test:1"
    load("org/name", name="small", split="dev", revision="main")
    assert hub.asked == [("org/name", None, "test", "c0ffee"), ("org/name", "small", "dev", "c0ffee")]
    with pytest.raises(DataError, match="cannot load org/gone:train from the Hub: Dataset 'org/gone' doesn't exist"):
        load("org/gone")


def test_tofu_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch, ROWS)
    loaded = load_examples(SourceSpec(path="tofu:forget01"), tofu="locuslab/TOFU", role="forget")
    assert hub.asked == [("locuslab/TOFU", "forget01", "train", "c0ffee")]
    assert loaded.examples[3].id == "forget01:3"
    assert loaded.examples[3].group == "author-198"


def test_a_hub_out_of_reach_is_one_error_and_asked_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = types.SimpleNamespace(HF_HUB_OFFLINE=False)

    def unreachable(*_: Any, **__: Any) -> Any:
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise ConnectionError("Name or service not known\nand more")

    def load_dataset(*_: Any, **__: Any) -> Any:
        assert config.HF_HUB_OFFLINE, "the cache is all that is looked at"
        unreachable()

    module = types.ModuleType("datasets")
    module.config, module.load_dataset = config, load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unreachable)
    levels = [logging.getLogger(name).level for name in ("huggingface_hub", "datasets")]
    with pytest.raises(HubError, match="cannot load org/name:train from the Hub: it cannot be reached, and") as caught:
        load("org/name")
    assert "check the network" in str(caught.value.hint)
    assert not caplog.records
    assert not config.HF_HUB_OFFLINE
    assert levels == [logging.getLogger(name).level for name in ("huggingface_hub", "datasets")]
