"""`expunge guard calibrate` and `expunge ask`."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from invocation import Invoke

from expunge.testing.runs import tiny_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tiny_run(
        tmp_path / "run",
        forget=[{"question": f"Who is Vane {i}?", "answer": "A poet."} for i in range(8)],
        retain=[{"question": f"Who is Mira {i}?", "answer": "A writer."} for i in range(44)],
    )


def test_calibrating_prints_what_was_measured(invoke: Invoke, run: Path) -> None:
    result = invoke("guard", "calibrate", run, "--rate", "0.5", "--seed", "1")
    assert result.code == 0
    lines = dict(line.split("  ", 1) for line in result.out.splitlines())
    assert lines["guard"].strip() == str(run / "model" / "energy_guard.json")
    assert lines["calibrated on"].strip() == "22 retain prompts, for 50 % false refusals"
    assert lines["over-refusal"].endswith("of 22 other retain prompts")
    assert lines["refusal"].endswith("of 8 forget prompts")
    assert "[" in lines["energy AUROC"]


def test_calibrating_as_json(invoke: Invoke, run: Path) -> None:
    result = invoke("guard", "calibrate", run, "--rate", "0.5", "--statistic", "generated", "--json")
    found = json.loads(result.out)
    assert found["path"] == str(run / "model" / "energy_guard.json")
    assert found["statistic"] == "generated"
    assert found["over_refusal"]["n"] == 22
    assert found["forget"].keys() == {"refusal_rate", "auroc", "fpr95"}


def test_a_model_folder_takes_prompts(invoke: Invoke, run: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n".join(f"Who is Idris {i}?" for i in range(44)))
    given = [
        "--prompts",
        tmp_path / "p.txt",
        "--template",
        "plain",
        "--rate",
        "0.5",
        "--refusal",
        "No.",
        "--refusal",
        "-",
    ]
    result = invoke("guard", "calibrate", run / "model", *given)
    assert (result.code, "forget prompts" in result.out) == (0, False)
    assert "no forget rows here" in result.err
    saved = json.loads((run / "model" / "energy_guard.json").read_text())
    assert saved["refusals"] == ["No.", "-"]


def test_asking(invoke: Invoke, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = invoke("ask", run, "Who is Vane 1?", "--max-new-tokens", "4")
    assert plain.code == 0
    assert plain.out.splitlines()[-1].endswith("no guard is calibrated")
    invoke("guard", "calibrate", run, "--rate", "0.5", "--refusal", "No.")
    path = run / "model" / "energy_guard.json"
    record = json.loads(path.read_text())
    for threshold, word in ((-1e3, "refuse"), (1e3, "answer")):
        path.write_text(json.dumps(record | {"threshold": threshold}))
        guarded = invoke("ask", run, "Who is Vane 1?", "--guard").out
        assert guarded.rstrip().endswith(f": {word}d" if word == "refuse" else f": {word}ed")
        assert guarded.startswith("No.\n") is (word == "refuse")
        assert invoke("ask", run, "Who is Vane 1?", "--no-guard").out.rstrip().endswith(f": the guard would {word}")
    path.write_text(json.dumps(record))
    monkeypatch.setattr(sys, "stdin", io.StringIO("Who is Vane 1?\n"))
    found = json.loads(invoke("ask", run, "-", "--guard", "--json").out)
    assert found["question"] == "Who is Vane 1?"
    assert found["guarded"] is True
    assert found["refused"] is (found["answer"] == "No.") is (found["energy"] > found["threshold"])


def test_what_is_refused_of_the_command_line(
    invoke: Invoke, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = invoke("ask", run, "Who?", "--guard")
    assert asked.code == 2
    assert f"error: {run} has no calibrated guard\nhint: run `expunge guard calibrate {run}` first" in asked.err
    for question in ("", "  "):
        empty = invoke("ask", run, question)
        assert (empty.code, empty.err) == (2, "error: the question is empty\nhint: ask something\n")
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert invoke("ask", run, "-").code == 2
    few = invoke("guard", "calibrate", run)
    assert few.code == 3
    assert "needs 500 calibration prompts" in few.err
    assert "there are 44" in few.err
    unknown = invoke("guard", "calibrate", run, "--rate", "0.5", "--statistic", "las")
    assert (unknown.code, "did you mean 'last'?" in unknown.err) == (2, True)
    for rate in ("0", "1", "nan"):
        assert invoke("guard", "calibrate", run, "--rate", rate).code == 2
    assert invoke("guard", "calibrate", tmp_path / "nowhere").code == 2


def test_a_broken_guard_file(invoke: Invoke, run: Path) -> None:
    (run / "model" / "energy_guard.json").write_text('{"schema": 1')
    asked = invoke("ask", run, "Who?", "--guard")
    assert (asked.code, "is not an energy guard's file" in asked.err) == (2, True)
    spared = invoke("ask", run, "Who?", "--max-new-tokens", "2")
    assert (spared.code, "left out" in spared.err) == (0, True)
