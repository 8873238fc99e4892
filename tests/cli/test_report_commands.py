"""`expunge report` and `expunge compare` as commands: what they pass on, print and refuse."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from invocation import Invoke

from expunge.errors import UsageError
from expunge.report import comparison, write
from expunge.report.verdict import Check, Verdict

NONE = Verdict("none", "No verdict can be given: why.", missing=("expunge eval START",))
DAMAGED = Verdict("damaged", "It lost what it was to keep.", (Check("kept", "0.5", "at least 0.9", False),))


def written(verdict: Verdict, **reasons: str) -> Any:
    found = SimpleNamespace(
        this=SimpleNamespace(path=Path("r")), start=None, retrained=SimpleNamespace(path=Path("n")), reasons=reasons
    )
    return write.Written(Path("r/report.html"), Path("r/model/README.md"), verdict, found)  # type: ignore[arg-type]


def test_everything_is_passed_on_and_the_file_printed(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def fake(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return written(NONE, start="the starting model was not evaluated")

    monkeypatch.setattr(write, "write_report", fake)
    options = ["--start", "s", "--reference", "n", "--runs", "a", "--runs", "b", "--out", "o.html", "--redact"]
    result = invoke("report", "r", *options)
    assert (result.code, result.out) == (0, "r/report.html\n")
    for line in ("No verdict can be given: why.", "the starting model was not evaluated", "expunge eval START"):
        assert line in result.err
    assert calls == [
        (
            (Path("r"),),
            {
                "start": Path("s"),
                "reference": Path("n"),
                "runs": [Path("a"), Path("b")],
                "out": Path("o.html"),
                "redact": True,
            },
        )
    ]


def test_a_reason_that_the_verdict_gives_is_not_said_again(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    why = "this model was not unlearned (kind of run: eval)"
    verdict = Verdict("none", f"No verdict: {why}.")
    monkeypatch.setattr(write, "write_report", lambda *_, **__: written(verdict, start=why, retrained="none named"))
    assert invoke("report", "r").err.splitlines() == [f"No verdict: {why}.", "none named"]


def test_a_report_as_json(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "write_report", lambda *args, **kwargs: written(DAMAGED))
    found = json.loads(invoke("report", "r", "--json").out)
    assert found["path"] == "r/report.html"
    assert (found["run"], found["start"], found["reference"], found["card"]) == ("r", None, "n", "r/model/README.md")
    assert found["verdict"]["word"] == "damaged"
    assert found["verdict"]["checks"] == [{"rule": "kept", "measured": "0.5", "needed": "at least 0.9", "met": False}]
    assert found["verdict"]["attacks"] == "none was run"


def test_a_comparison_prints_its_file_and_each_verdict(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    done = comparison.WrittenComparison(Path("c.html"), {"eua": DAMAGED})
    monkeypatch.setattr(comparison, "write_comparison", lambda *args, **kwargs: done)
    result = invoke("compare", "a", "b")
    assert (result.code, result.out) == (0, "c.html\n")
    assert "eua: damaged: It lost" in result.err
    assert json.loads(invoke("compare", "a", "b", "--json").out)["verdicts"]["eua"]["word"] == "damaged"


def test_an_error_is_said_without_a_traceback(invoke: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise UsageError("no finished evaluation in r", hint="run `expunge eval r` first")

    monkeypatch.setattr(write, "write_report", fail)
    result = invoke("report", "r")
    assert (result.code, result.out) == (2, "")
    assert result.err == "error: no finished evaluation in r\nhint: run `expunge eval r` first\n"


def test_what_is_no_run_is_a_usage_error(invoke: Invoke, tmp_path: Path) -> None:
    for argv in (["report", tmp_path], ["compare", tmp_path, tmp_path], ["report"], ["compare"]):
        assert invoke(*argv).code == 2
