"""Files of rows that cannot be used, or only look odd."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile_result import DATA, USAGE, Invoke, Result, assert_refused, manifest
from hostile_world import World, rows, write_jsonl

Unlearn = Callable[..., Result]


@pytest.fixture
def unlearn(world: World, invoke: Invoke) -> Unlearn:
    """One step of the recipe, with changes."""

    def run(**changes: Any) -> Result:
        return invoke("unlearn", world.recipe(**changes), "train.max_steps=1")

    return run


def ran(result: Result, world: World, *, forget: int = 12, retain: int = 20) -> bool:
    """Whether it finished, on so many rows."""
    data = {item["role"]: item["rows"] for item in manifest(world.run)["data"]} if result.code == 0 else {}
    return data == {"forget": forget, "retain": retain}


def test_a_missing_file_names_the_nearest(world: World, unlearn: Unlearn) -> None:
    assert_refused(unlearn(data__forget=str(world / "forgte.jsonl")), DATA, r"no such file: .*forgte", r"forget\.jsonl")
    assert not world.run.exists(), "a run that cannot start leaves nothing behind"


@pytest.mark.parametrize("text", ["", "\n\n  \n", "[]"])
def test_an_empty_file(world: World, unlearn: Unlearn, text: str) -> None:
    (world / "forget.jsonl").write_text(text)
    assert_refused(unlearn(), DATA, r"forget\.jsonl is empty")


def test_wrong_columns(world: World, unlearn: Unlearn) -> None:
    write_jsonl(world / "forget.jsonl", [{"q": "Who?", "a": "Mira"}])
    assert_refused(unlearn(), DATA, "has columns q, a; accepted: .*question and answer", "fields")
    source = {"path": str(world / "forget.jsonl"), "fields": {"question": "q", "answer": "a"}}
    assert ran(unlearn(data__forget=source), world, forget=1)


@pytest.mark.parametrize("method", ["grad_diff", "npo", "simnpo", "wga", "satimp", "eua"])
def test_one_row_of_each_is_enough(world: World, unlearn: Unlearn, method: str) -> None:
    write_jsonl(world / "forget.jsonl", rows("forget", 1))
    write_jsonl(world / "retain.jsonl", rows("retain", 1))
    assert ran(unlearn(method={"name": method}), world, forget=1, retain=1)


def test_rows_to_forget_and_to_keep(world: World, unlearn: Unlearn) -> None:
    write_jsonl(world / "retain.jsonl", [*rows("retain", 5), *rows("forget", 2)])
    pairs = "forget row 0 = retain row 5, forget row 1 = retain row 6"
    assert_refused(unlearn(), DATA, "2 of 12 forget examples are also retain", pairs, "remove them")
    result = unlearn(data__retain=str(world / "forget.jsonl"))
    assert_refused(result, DATA, "12 of 12 forget examples are also retain", "and 7 more")


@pytest.mark.parametrize(("policy", "length"), [("error", 50), ("keep", 20), ("drop", 10)])
def test_answers_cut_away_say_the_length_that_works(world: World, unlearn: Unlearn, policy: str, length: int) -> None:
    changes = {"data__on_truncate": policy, "method": {"name": "grad_ascent"}, "data__retain": None}
    result = unlearn(data__max_length=length, **changes)
    assert_refused(result, DATA, r"(rows? \d|all 12)", r"set data\.max_length=53")
    assert unlearn(data__max_length=53, **changes).code == 0


def test_a_row_beyond_the_model_gets_no_length_that_cannot_work(world: World, unlearn: Unlearn) -> None:
    long = rows("forget", 3)
    long[1]["answer"] = "word " * 2000
    write_jsonl(world / "forget.jsonl", long)
    result = unlearn(data__max_length=100_000)
    assert_refused(result, DATA, r"1 of 3 forget .*\(row 1\)", r"need up to \d+ tokens and the model reads 512")
    assert "set data.max_length" not in result.err
    assert ran(unlearn(data__max_length=100_000, data__on_truncate="drop"), world, forget=3)


def test_line_endings_a_mark_and_the_name_do_not_matter(world: World, unlearn: Unlearn) -> None:
    source = world / "forget.jsonl"
    lines = source.read_bytes()
    name = world / "vergiß mich 忘れる.jsonl"
    name.write_bytes(b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n"))
    assert ran(unlearn(data__forget=str(name)), world)
    (digest,) = [item["digest"] for item in manifest(world.run)["data"] if item["role"] == "forget"]
    assert unlearn(output_dir=str(world / "plain")).code == 0
    assert digest in json.dumps(manifest(world / "plain"))


def test_windows_csv(world: World, unlearn: Unlearn) -> None:
    text = '\ufeffquestion,answer\r\nWho är it?,"Mira, Solen"\r\nWho else?,"two\r\nlines"\r\n'
    (world / "f.csv").write_bytes(text.encode())
    assert ran(unlearn(data__forget=str(world / "f.csv")), world, forget=2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"question": "x", ', "line 4: invalid JSON"),
        (b'{"question": "x", "answer": null}', r"1 of 12 rows .* 'answer' is not text \(row 3\)"),
        (b'{"question": "x", "answer": " "}', r"'answer' is empty \(row 3\)"),
        (b'{"question": "x"}', r"'answer' is missing \(row 3\)"),
        (b"[1, 2]", "row 3 is list"),
    ],
)
def test_one_bad_line_is_named(world: World, unlearn: Unlearn, line: bytes, message: str) -> None:
    lines = (world / "forget.jsonl").read_bytes().split(b"\n")
    lines[3] = line
    (world / "forget.jsonl").write_bytes(b"\n".join(lines))
    assert_refused(unlearn(), DATA, message)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("f.jsonl", b'{"question": "x"'.decode().encode("utf-16"), "not UTF-8"),
        ("f.jsonl", b"\x00\x01\x02", "not text"),
        ("f.csv", b"question;answer\nWho?;Mira\n", "columns question;answer"),
        ("f.csv", b"question,answer\nWho?\n", "line 2: fewer cells"),
        ("f.csv", b"question,answer\n", "is empty"),
        ("f.csv", b'question,answer\nWho?,"x\n', "line"),
        ("f.parquet", b"PAR1 and nothing else", "not a readable Parquet"),
    ],
)
def test_files_that_are_something_else(world: World, unlearn: Unlearn, name: str, content: bytes, message: str) -> None:
    (world / name).write_bytes(content)
    assert_refused(unlearn(data__forget=str(world / name)), DATA, message)


def test_without_retain_data_the_hint_is_true(world: World, unlearn: Unlearn) -> None:
    result = unlearn(data__retain=None)
    told = r"these work: grad_ascent, and with method\.alpha=0 .*npo"
    assert_refused(result, USAGE, "npo needs retain data", r"data\.retain=FILE", told)
    for method in ({"name": "grad_ascent"}, {"name": "npo", "alpha": 0}):
        assert unlearn(data__retain=None, method=method, output_dir=str(world / str(method["name"]))).code == 0
    assert_refused(unlearn(data__forget=None), USAGE, "no forget data")


@pytest.mark.parametrize("name", ["idk_nll", "idk_dpo", "flat"])
def test_refusals_are_asked_for(name: str, world: World, unlearn: Unlearn) -> None:
    assert_refused(unlearn(method={"name": name}), USAGE, r"data\.refusals is empty", r"data\.refusals=FILE")


def test_validate_refuses_the_same(world: World, invoke: Invoke) -> None:
    recipe = world.recipe(data__max_length=30)
    results = [invoke(command, recipe) for command in ("unlearn", "validate", "plan")]
    for result in results:
        assert_refused(result, DATA, "lose answer tokens", "max_length=53")


def test_paths_are_not_confused_with_the_hub(world: World, unlearn: Unlearn) -> None:
    assert_refused(unlearn(data__forget=str(Path("no") / "such" / "folder" / "f.jsonl")), DATA, "no such file")
