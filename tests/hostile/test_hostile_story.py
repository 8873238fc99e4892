"""Worlds, guards, questions, reports, comparisons and demos that are damaged, foreign, empty or without a disk."""

from __future__ import annotations

import html
import io
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile_result import DATA, STOPPED, USAGE, Invoke, Result, assert_refused, manifest
from hostile_world import World, write_jsonl
from test_hostile_disk import disk

from expunge.demo.workers import Job, carry_out
from expunge.errors import StoppedError

BAD = '<img src=x onerror=alert(1)></script><script>alert(2)</script>\u202e\x00\x1b[31m" & {{7*7}} |'
"""What a page, a terminal or a template could take for something else than text."""


def build(invoke: Invoke, *argv: str | Path) -> Result:
    return invoke("world", "build", "--people", "12", *argv)


def test_another_world_is_replaced_file_by_file(tmp_path: Path, invoke: Invoke) -> None:
    folder = tmp_path / "w"
    assert build(invoke, "--out", folder).code == 0
    (folder / "thesis.txt").write_text("mine")
    assert_refused(build(invoke, "--out", folder, "--seed", "1"), USAGE, "another world", "--overwrite")
    assert build(invoke, "--out", folder, "--seed", "1", "--overwrite").code == 0
    assert json.loads((folder / "world.json").read_text())["seed"] == 1
    assert (folder / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["forget.jsonl", "multi_hop.jsonl", "world.json"])
def test_an_edited_world_is_not_taken_for_intact(tmp_path: Path, invoke: Invoke, name: str) -> None:
    folder = tmp_path / "w"
    assert build(invoke, "--out", folder).code == 0
    whole = (folder / name).read_bytes()
    if name == "multi_hop.jsonl":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(whole.replace(b'"holdout"', b'"retain"').replace(b"born", b"made"))
    assert_refused(build(invoke, "--out", folder), USAGE, f"holds this world, but {name} was edited", "--overwrite")
    assert build(invoke, "--out", folder, "--overwrite").code == 0
    assert (folder / name).read_bytes() == whole


def test_where_no_world_can_lie(tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    assert_refused(build(invoke, "--out", tmp_path / "file", "--overwrite"), USAGE, "is a file", "--out")
    (tmp_path / "foreign").mkdir()
    write_jsonl(tmp_path / "foreign/forget.jsonl", [{"mine": 1}])
    assert_refused(build(invoke, "--out", tmp_path / "foreign"), USAGE, "not empty and not a world", "--out")
    assert json.loads((tmp_path / "foreign/forget.jsonl").read_text()) == {"mine": 1}
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert build(invoke, "--out", ".").code == 0
    assert Path("world.json").exists()


def test_no_half_world_on_a_full_disk(tmp_path: Path, invoke: Invoke) -> None:
    with disk(tmp_path / "disk", 64):
        assert_refused(build(invoke, "--out", tmp_path / "disk/w"), STOPPED, "no space left", "free some space")
        assert list((tmp_path / "disk/w").iterdir()) == []


@pytest.mark.parametrize("rate", ["0", "1", "2", "nan", "-0.1"])
def test_rates_no_guard_can_have(measured: Path, invoke: Invoke, rate: str) -> None:
    refused = invoke("guard", "calibrate", measured / "run", "--rate", rate)
    assert_refused(refused, USAGE, "false-refusal rate is", r"inside \(0, 1\)")


def test_too_few_prompts_for_a_guard(measured: Path, invoke: Invoke) -> None:
    refused = invoke("guard", "calibrate", measured / "run")
    assert_refused(refused, DATA, "needs 500 calibration prompts", "there are 20", "--prompts FILE")
    assert not (measured / "run/model/energy_guard.json").exists()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b'{"foo": "Q?"}\n', "has columns foo"),
        (b'{"question": " ", "answer": "a"}\n', "'question' is empty"),
        (b'{"question": "Q", "ans', "invalid JSON"),
        (b'\xef\xbb\xbf{"question": "Q?", "answer": "a"}\n', "needs 20 calibration prompts .*there are 1"),
    ],
)
def test_prompts_no_guard_can_be_calibrated_on(measured: Path, invoke: Invoke, data: bytes, words: str) -> None:
    (measured / "prompts.jsonl").write_bytes(data)
    refused = invoke("guard", "calibrate", measured / "run", "--prompts", "prompts.jsonl", "--rate", "0.5")
    assert_refused(refused, DATA, words)


@pytest.mark.parametrize("question", ["", " \n\t", "caf\udce9"])
def test_questions_that_are_none(world: World, invoke: Invoke, question: str) -> None:
    assert_refused(invoke("ask", world / "model", question), USAGE, "the question is (empty|not UTF-8)")


@pytest.mark.parametrize("data", [b"", b" \n", b"caf\xe9"])
def test_questions_on_stdin_that_are_none(
    world: World, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
    assert_refused(invoke("ask", world / "model", "-"), USAGE, "the question is (empty|not UTF-8)")


def test_a_question_on_a_closed_stdin(world: World, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert_refused(invoke("ask", world / "model", "-"), USAGE, "the question is empty")


def test_a_question_longer_than_the_context(world: World, invoke: Invoke) -> None:
    assert_refused(invoke("ask", world / "model", "why? " * 5000), USAGE, "the model reads", "a shorter question")


def test_a_question_of_strange_characters(world: World, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    from expunge.guards.base import Subject

    monkeypatch.setattr(Subject, "text", lambda self, tokens: BAD)
    result = invoke("ask", world / "model", "a\x00b\x1b[31m🙂🏳️‍🌈\u202e", "--max-new-tokens", "2")
    assert result.code == 0
    assert not re.search("[\x00\x1b\u202e]", result.out), "a model's answer commands the terminal"


@pytest.mark.slow
def test_guards_that_are_missing_cut_or_foreign(measured: Path, invoke: Invoke) -> None:
    asked = ("ask", measured / "run", "Who?", "--guard", "--max-new-tokens", "2")
    assert_refused(invoke(*asked), USAGE, "has no calibrated guard", "expunge guard calibrate")
    write_jsonl(measured / "many.jsonl", [{"question": f"Question {i}?", "answer": "a"} for i in range(40)])
    calibrate = ("guard", "calibrate", measured / "run", "--prompts", "many.jsonl", "--rate", "0.5")
    assert invoke(*calibrate).code == 0
    path = measured / "run/model/energy_guard.json"
    whole = path.read_text()
    record = json.loads(whole)
    damaged = {
        whole[:40]: "not an energy guard's file",
        "[]": "schema None",
        json.dumps({**record, "schema": 9}): "schema 9, this version reads 1",
        json.dumps({**record, "threshold": float("nan")}): "threshold: .*finite",
        json.dumps({**record, "model_digest": "f" * 64}): "another model",
        json.dumps({**record, "refusals": []}): "refusals",
    }
    for text, words in damaged.items():
        path.write_text(text)
        assert_refused(invoke(*asked), USAGE, words, "expunge guard calibrate")
    path.unlink()
    path.mkdir()
    assert_refused(invoke("report", measured / "run"), DATA, "energy_guard.json", "guard calibrate")


def metrics_of(run: Path) -> Path:
    (path,) = run.glob("evals/*/metrics.json")
    return path


@pytest.mark.parametrize(
    ("field", "value"), [("value", float("nan")), ("value", None), ("low", float("inf")), ("n", "12"), ("direction", 1)]
)
def test_an_edited_number_is_no_verdict(measured: Path, invoke: Invoke, field: str, value: object) -> None:
    path = metrics_of(measured / "run")
    stored = json.loads(path.read_text())
    stored["metrics"]["forget.extraction_strength"][field] = value
    path.write_text(json.dumps(stored))
    refused = invoke("report", measured / "run")
    assert_refused(refused, DATA, f"forget.extraction_strength: {field} is", "expunge metrics")
    assert not (measured / "run/report.html").exists()


@pytest.mark.parametrize("data", [b"[]", b'{"metrics": {', b"\xff\xfe", b'{"metrics": {}, "skipped": null}'])
def test_metrics_that_are_cut(measured: Path, invoke: Invoke, data: bytes) -> None:
    metrics_of(measured / "run").write_bytes(data)
    assert_refused(invoke("report", measured / "run"), DATA, "not what `expunge eval` writes", "expunge metrics")
    assert_refused(invoke("compare", measured / "retrained", measured / "run"), DATA, "not what")


def test_runs_that_cannot_be_reported(measured: Path, invoke: Invoke) -> None:
    (measured / "file").write_text("")
    run = measured / "run"
    assert_refused(invoke("report", "nosuch"), USAGE, "nosuch does not exist", "expunge runs")
    assert_refused(invoke("report", "file"), USAGE, "file is a file")
    assert_refused(invoke("report", run, "--start", "nosuch"), USAGE, "nosuch does not exist")
    assert_refused(invoke("report", run, "--out", measured), USAGE, "is a folder", "name a file")
    assert_refused(invoke("report", run, "--out", ""), USAGE, "is a folder", "name a file")
    assert_refused(invoke("report", run, "--out", "file/r.html"), USAGE, "cannot be written")
    path = run / "manifest.json"
    whole = path.read_text()
    path.write_text(json.dumps({**json.loads(whole), "status": "stopped"}))
    assert_refused(invoke("report", run), USAGE, "half-written", "repeat the `expunge unlearn` command")
    resolved = {**manifest(run)["resolved"], "eval": "x"}
    path.write_text(json.dumps({**json.loads(whole), "resolved": resolved}))
    assert_refused(invoke("report", run), DATA, "resolved.eval is not a section")
    path.write_text(whole)
    shutil.rmtree(run / "evals")
    assert_refused(invoke("report", run), USAGE, "no finished evaluation", "expunge eval")


@pytest.mark.slow
def test_models_measured_by_themselves_on_one_row(measured: Path, invoke: Invoke) -> None:
    recipe = World(measured).recipe("own.yaml")
    for name in ("run", "retrained"):
        model, out = measured / name / "model", measured / f"bare-{name}"
        assert invoke("eval", model, "--recipe", recipe, "--limit", "1", "--out", out).code == 0
        result = invoke("report", out)
        assert (result.code, "No verdict" in result.err) == (0, True), result.err
    assert invoke("compare", "bare-run", "bare-retrained").code == 0
    assert_refused(invoke("compare", "bare-run", "run"), DATA, "measured on other rows", "--limit")


def test_a_model_is_not_its_own_yardstick(measured: Path, invoke: Invoke) -> None:
    run = measured / "run"
    assert_refused(invoke("report", run, "--reference", run), DATA, "holds the unlearned model itself", "--reference")
    assert_refused(invoke("compare", run, run), USAGE, "named twice")
    assert_refused(invoke("compare", run), USAGE, "two runs or more")


def test_a_starting_run_that_nobody_named(measured: Path, invoke: Invoke) -> None:
    run = measured / "run"
    path = run / "manifest.json"
    stored = json.loads(path.read_text())
    stored["resolved"]["model"]["model_name_or_path"] = str(measured / "retrained/model")
    path.write_text(json.dumps(stored))
    result = invoke("report", run)
    assert (result.code, "holds another model" in result.err) == (0, True), result.err
    assert f"expunge report {run} --start START" in result.err
    assert_refused(invoke("report", run, "--start", "retrained"), DATA, "holds another model", "--start")


def test_losses_that_are_no_numbers(measured: Path, invoke: Invoke) -> None:
    path = measured / "run/events.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    steps = [line for line in lines if line.get("event") == "step"]
    steps[0]["loss"] = steps[0]["forget"] = float("nan")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"event": "st')
    assert invoke("report", measured / "run").code == 0
    page = (measured / "run/report.html").read_text()
    assert "1 step had a value that is not finite" in page
    assert not re.search(r"(?i)[^a-z]nan[^a-z]", re.sub(r"<style.*?</style>", "", page, flags=re.DOTALL))


def poison(run: Path) -> None:
    """Put `BAD` before every text that a report shows."""
    (path,) = run.glob("evals/*/generations.parquet")
    table: Any = pq.read_table(path)
    for name in ("prompt", "reference", "output"):
        texts = pa.array([f"{BAD}{text}" for text in table[name].to_pylist()])
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), texts)
    pq.write_table(table, path)


def test_texts_and_names_stay_text(measured: Path, invoke: Invoke) -> None:
    run = (measured / "run").rename(measured / "<img src=x onerror=alert(1)>|\"q' & `x` ü")
    poison(run)
    assert invoke("report", run).code == 0
    assert invoke("compare", run, "retrained").code == 0
    for page in (run / "report.html", Path("comparison.html")):
        shown = page.read_text(encoding="utf-8")
        assert not re.search("<img|<script|[\x00\x1b\u202e]", shown), page
        assert "onerror" in shown
    _, data, text = (run / "model/README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert "onerror" in data, "data is read, not shown"
    assert not re.search(r"(?<!\\)<img", text)


def test_redaction_leaves_nothing_of_the_forget_set(measured: Path, invoke: Invoke) -> None:
    run = measured / "run"
    (path,) = run.glob("evals/*/generations.parquet")
    made = [row for row in pq.read_table(path).to_pylist() if row["split"].startswith("forget")]
    rows = [json.loads(line) for line in (measured / "forget.jsonl").read_text().splitlines()]
    secrets = {row[key] for row in made for key in ("prompt", "reference", "output") if len(row[key].strip()) > 8}
    secrets |= {row[key] for row in rows for key in ("question", "answer", "paraphrased_answer")}
    for argv in (("report", run), ("compare", run, "retrained", "--out", run / "compared.html")):
        assert invoke(*argv, "--redact").code == 0
    for name in ("report.html", "compared.html", "model/README.md"):
        page = html.unescape((run / name).read_text(encoding="utf-8"))
        assert not [secret for secret in secrets if secret in page], name
        assert (run / "redact.key").read_text().strip() not in page
    (run / "redact.key").write_text("zz")
    assert_refused(invoke("report", run, "--redact"), DATA, "not a redaction key", "restore or delete")


def test_a_full_disk_keeps_the_older_report(measured: Path, invoke: Invoke) -> None:
    with disk(measured / "disk", 4):
        out = measured / "disk/r.html"
        out.write_text("older")
        assert_refused(invoke("report", measured / "run", "--out", out), STOPPED, "no space left")
        assert out.read_text() == "older"
        assert list(out.parent.iterdir()) == [out]


def test_demos_clear_nothing_but_their_own(tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "mine"
    (out / "seed-1").mkdir(parents=True)
    (out / "seed-1/thesis").write_text("mine")
    assert_refused(invoke("demo", "--out", out), USAGE, "not empty and no demo lies there", "--out")
    for text in ('{"my": 1}', '{"settings": {"see', "[]"):
        (out / "demo.json").write_text(text)
        assert_refused(invoke("demo", "--out", out), USAGE, "not what a demo writes", "--out")
    assert (out / "seed-1/thesis").read_text() == "mine"


def test_places_and_numbers_no_demo_can_use(tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "file").write_text("")
    for argv in (("--seed", "-1"), ("--seeds", "0"), ("--out", tmp_path / "file")):
        assert_refused(invoke("demo", *argv), USAGE)
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "file"))
    assert_refused(invoke("demo", "--out", tmp_path / "demo"), USAGE, "cannot be written", "EXPUNGE_CACHE")
    assert not (tmp_path / "demo").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.Popen

    def killed(*args: Any, **kwargs: Any) -> Any:
        process = real(*args, **kwargs)
        process.send_signal(signal.SIGKILL)
        return process

    monkeypatch.setattr(subprocess, "Popen", killed)
    with pytest.raises(StoppedError, match=r"a worker process ended while at 0/start \(exit code -9\)") as raised:
        carry_out([Job("0/start", ())], lambda job, message: None, count=1)
    assert "the same command continues" in (raised.value.hint or "")


CLOSED = """
import os, sys
for number in {closed}:
    os.close(number)
    setattr(sys, ("stdin", "stdout", "stderr")[number], None)
if {full}:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
from expunge.cli.main import main
os._exit(main({argv}))
"""


@pytest.mark.parametrize(
    ("closed", "full", "argv", "code"),
    [
        ((1,), False, ["world", "build", "--people", "12"], 0),
        ((0, 1, 2), False, ["world", "build", "--people", "12"], 0),
        ((), True, ["ls", "methods"], STOPPED),
    ],
)
def test_streams_that_are_closed_or_full(
    tmp_path: Path, closed: tuple[int, ...], full: bool, argv: list[str], code: int
) -> None:
    source = CLOSED.format(closed=closed, full=full, argv=argv)
    path = str(Path(__file__).parents[2] / "src")
    done = subprocess.run(
        [sys.executable, "-c", source],
        cwd=tmp_path,
        env={"PYTHONPATH": path, "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == code, done.stderr
