"""Multiple-choice rows from files and the Hub, and the harness's prompt of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expunge.data.benchmarks import mmlu, wmdp
from expunge.data.benchmarks.mmlu import CATEGORIES, load_mmlu
from expunge.data.benchmarks.wmdp import load_wmdp
from expunge.data.hub import HubRows
from expunge.data.multiple_choice import Question, asked, read_questions, to_example
from expunge.data.template import build_template
from expunge.errors import DataError, UsageError
from expunge.testing.tiny import tiny_tokenizer

ROW: dict[str, Any] = {
    "question": " Which gas do plants take in? ",
    "choices": ["Neon", "Carbon dioxide", "Helium", "Argon"],
    "answer": 1,
}
PROMPT = """The following are multiple choice questions (with answers) about biology.

Which gas do plants take in?
A. Neon
B. Carbon dioxide
C. Helium
D. Argon
Answer:"""


def jsonl(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows or (ROW,)), encoding="utf-8")
    return path


def parquet(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows or (ROW,))), path)
    return path


# Rows


@pytest.mark.parametrize(
    "row",
    [
        ROW,
        ROW | {"answer": "B"},
        ROW | {"answer": "1", "choices": str(ROW["choices"])},
    ],
)
def test_an_answer_is_an_index_or_a_letter_and_a_csv_s_list_is_text(row: dict[str, Any]) -> None:
    (question,) = read_questions([row], origin="x")
    assert question == Question(0, ROW["question"], tuple(ROW["choices"]), 1)


def test_missing_columns_are_named_with_what_was_found() -> None:
    message = r"x\.jsonl has no columns 'choices', 'answer'; it has question, key"
    with pytest.raises(DataError, match=message):
        read_questions([{"question": "?", "key": 1}], origin="x.jsonl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 4}, r"'answer' is 4, which none of 4 choices has \(they count from 0\) \(row 1\)"),
        ({"answer": -1}, "'answer' is -1"),
        ({"answer": "E"}, "'answer' is 4"),
        ({"answer": None}, "neither an index nor a letter"),
        ({"answer": True}, "neither an index nor a letter"),
        ({"answer": "Neon"}, "neither an index nor a letter"),
        ({"choices": "Neon, Argon"}, "'choices' is not a list of texts"),
        ({"choices": {"text": ["a", "b"]}}, "'choices' is not a list of texts"),
        ({"choices": ["a", " "]}, "an option that is empty or not text"),
        ({"choices": ["a", 2]}, "an option that is empty or not text"),
        ({"choices": ["a"]}, "has 1 options, not 2 to 26"),
        ({"question": "  "}, "'question' is empty"),
    ],
)
def test_rows_that_cannot_be_used_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_questions([ROW, ROW | change, ROW], origin="x.jsonl")
    assert str(caught.value).startswith("1 of 3 rows of x.jsonl cannot be used")


# The prompt


def question(row: dict[str, Any] = ROW) -> Question:
    return read_questions([row], origin="x")[0]


def test_the_prompt_is_the_harness_s_letter_by_letter() -> None:
    example = to_example(question(), id="bio:0", about="biology")
    assert example.extra == {"options": ("A", "B", "C", "D"), "gold": 1}
    template = build_template("harness", tiny_tokenizer())
    row = template.encode(example)
    assert template.tokenizer.decode(template.prompt_ids(example.prompt)) == PROMPT
    assert template.tokenizer.decode(row.input_ids) == f"{PROMPT} B"
    assert template.tokenizer.decode(row.input_ids[row.supervised]) == " B"
    assert not row.is_end.any()


def test_a_chat_template_gets_the_description_as_its_system_turn() -> None:
    template = build_template("auto", tiny_tokenizer())
    row = template.encode(to_example(question(), id="bio:0", about="biology"))
    head, body = PROMPT.split("\n\n")
    text = f"<|system|>{head}\n\n<|end|><|user|>{body}<|end|><|assistant|>B<|end|>"
    assert template.tokenizer.decode(row.input_ids) == text


def test_shots_stand_before_the_question_with_their_answers() -> None:
    shots = [question(ROW | {"answer": 0}), question(ROW | {"choices": ["x", "y"], "answer": 1})]
    example = to_example(question(), id="bio:0", about="biology", shots=shots)
    user = example.prompt[-1].content
    assert user == f"{asked(shots[0])} A\n\n{asked(shots[1])} B\n\n{asked(question())}"


def test_the_harness_needs_no_end_token() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    template = build_template("harness", tokenizer)
    assert template.end_ids == frozenset()
    with pytest.raises(UsageError, match="supervises the last answer only"):
        template.encode(to_example(question(), id="x", about="x"), supervise="all_assistant")


# WMDP


def test_real_rows_in_the_format_of_wmdp(shared: Path) -> None:
    found = load_wmdp(str(shared / "data/wmdp_synthetic_benign")).questions
    assert {name: len(rows) for name, rows in found.items()} == {"bio": 100, "chem": 100, "cyber": 100}
    assert {len(each.choices) for rows in found.values() for each in rows} == {4}
    assert found["bio"][0].choices[found["bio"][0].answer].startswith("It functions as a tumor suppressor")


def test_layouts_of_wmdp(tmp_path: Path) -> None:
    parquet(tmp_path / "hub/wmdp-bio/test-00000-of-00001.parquet")
    parquet(tmp_path / "hub/wmdp-cyber/test-00000-of-00001.parquet", ROW, ROW)
    (tmp_path / "hub/README.md").write_text("About.")
    hub = load_wmdp(str(tmp_path / "hub"))
    assert {name: len(rows) for name, rows in hub.questions.items()} == {"bio": 1, "cyber": 2}
    assert hub.revision is None
    jsonl(tmp_path / "zip/chem_questions.json")
    assert list(load_wmdp(str(tmp_path / "zip")).questions) == ["chem"]
    assert list(load_wmdp(str(jsonl(tmp_path / "my-bio.jsonl"))).questions) == ["bio"]


def test_what_is_no_wmdp(tmp_path: Path) -> None:
    jsonl(tmp_path / "other.jsonl")
    with pytest.raises(DataError, match=r"holds no WMDP file; it has other\.jsonl"):
        load_wmdp(str(tmp_path))
    jsonl(tmp_path / "wmdp-bio.jsonl")
    jsonl(tmp_path / "bio-forget.jsonl")
    with pytest.raises(DataError, match=r"holds 2 files named after bio: bio-forget\.jsonl, wmdp-bio\.jsonl"):
        load_wmdp(str(tmp_path))
    with pytest.raises(DataError, match="no such file"):
        load_wmdp(str(tmp_path / "nothing"))


def test_wmdp_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for: list[tuple[Any, ...]] = []

    def load_hub(repo: str, *, name: str | None, split: str, revision: str | None) -> HubRows:
        asked_for.append((repo, name, split, revision))
        return HubRows([ROW], "c0ffee")

    monkeypatch.setattr(wmdp, "load_hub", load_hub)
    found = load_wmdp("cais/wmdp")
    assert asked_for == [
        ("cais/wmdp", "wmdp-bio", "test", None),
        ("cais/wmdp", "wmdp-chem", "test", "c0ffee"),
        ("cais/wmdp", "wmdp-cyber", "test", "c0ffee"),
    ]
    assert (list(found.questions), found.revision) == (["bio", "chem", "cyber"], "c0ffee")


# MMLU


def test_the_categories_hold_57_subjects_once() -> None:
    subjects = [subject for members in CATEGORIES.values() for subject in members]
    assert len(subjects) == len(set(subjects)) == 57
    assert {name: len(members) for name, members in CATEGORIES.items()} == {
        "stem": 19,
        "humanities": 13,
        "social_sciences": 12,
        "other": 13,
    }


def test_real_rows_in_the_format_of_mmlu(shared: Path) -> None:
    found = load_mmlu(str(shared / "data/mmlu_categories"))
    assert len(found.questions) == 10
    assert {"stem", "social_sciences", "law"} <= found.questions.keys()
    assert len(found.questions["stem"]) == 157
    assert [len(found.pool(name)) for name in ("stem", "law")] == [5, 5]
    assert not load_mmlu(str(shared / "data/mmlu_categories"), with_shots=False).shots


def test_layouts_of_mmlu(tmp_path: Path) -> None:
    law, virology = ({**ROW, "subject": subject} for subject in ("international_law", "virology"))
    parquet(tmp_path / "all/all/test-00000-of-00001.parquet", law, virology, law)
    parquet(tmp_path / "all/all/dev-00000-of-00001.parquet", virology, virology)
    parquet(tmp_path / "all/virology/test-00000-of-00001.parquet", virology)
    found = load_mmlu(str(tmp_path / "all"))
    assert {name: [each.row for each in rows] for name, rows in found.questions.items()} == {
        "international_law": [0, 2],
        "virology": [1],
    }
    assert [len(found.pool(name)) for name in ("virology", "international_law")] == [2, 0]

    parquet(tmp_path / "folders/virology/test-00000-of-00001.parquet", virology)
    parquet(tmp_path / "folders/virology/dev-00000-of-00001.parquet", virology, virology)
    found = load_mmlu(str(tmp_path / "folders"))
    assert (list(found.questions), len(found.pool("virology"))) == (["virology"], 2)

    jsonl(tmp_path / "flat/mmlu_College Biology.jsonl")
    jsonl(tmp_path / "flat/law_test.jsonl")
    jsonl(tmp_path / "flat/law_dev.jsonl", ROW, ROW)
    jsonl(tmp_path / "flat/dev.jsonl")
    found = load_mmlu(str(tmp_path / "flat"))
    assert list(found.questions) == ["law", "college_biology"]
    assert [len(found.pool(name)) for name in found.questions] == [2, 1]


def test_what_is_no_mmlu(tmp_path: Path) -> None:
    jsonl(tmp_path / "a/test.jsonl")
    with pytest.raises(DataError, match=r"test\.jsonl row 0 names no subject"):
        load_mmlu(str(tmp_path / "a"))
    jsonl(tmp_path / "b/law.jsonl")
    (tmp_path / "b/mmlu_law.csv").write_text("question,answer,choices\nq,0,\"['x', 'y']\"\n")
    with pytest.raises(DataError, match=r"law\.jsonl and .*mmlu_law\.csv both hold law"):
        load_mmlu(str(tmp_path / "b"))
    (tmp_path / "c").mkdir()
    with pytest.raises(DataError, match="holds no questions"):
        load_mmlu(str(tmp_path / "c"))


def test_mmlu_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for: list[tuple[Any, ...]] = []

    def load_hub(repo: str, *, name: str | None, split: str, revision: str | None) -> HubRows:
        asked_for.append((repo, name, split, revision))
        return HubRows([{**ROW, "subject": "virology"}], "c0ffee")

    monkeypatch.setattr(mmlu, "load_hub", load_hub)
    found = load_mmlu("cais/mmlu")
    assert asked_for == [("cais/mmlu", "all", "test", None), ("cais/mmlu", "all", "dev", "c0ffee")]
    assert (list(found.questions), len(found.pool("virology")), found.revision) == (["virology"], 1, "c0ffee")
    load_mmlu("cais/mmlu", with_shots=False)
    assert asked_for[2:] == [("cais/mmlu", "all", "test", None)]
