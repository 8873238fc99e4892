"""What `expunge demo` prints: in a wide terminal, in one of 40 columns, and where the encoding lacks characters."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from expunge.cli import demo as command
from expunge.cli.main import main
from expunge.demo.run import DemoResult, DemoRun, SeedResult
from expunge.demo.story import Exchange

NAMES = ("start", "retrained", "eua", "npo", "grad_diff")


def score(value: float) -> dict[str, Any]:
    return {"value": value, "low": None, "high": None, "n": 9, "n_total": 9, "ideal": None, "direction": "lower"}


def result(*, fast: bool = False, seeds: int = 1) -> DemoResult:
    metrics = {"forget.extraction_strength": score(0.0123), "forget_quality": score(1e-9)}
    runs = tuple(DemoRun(name, name, Path("runs") / name, name == "start", metrics, {}) for name in NAMES)
    told = [
        Exchange(
            "forget", "Where was N born?", "N was born in V.", "N was born in V.", "M", "V V V", "No.", True, -6, -9
        ),
        Exchange("retain", "Where was M born?", "In W.", "In W.", "In W.", "In W.", "In W.", False, -12.0, -9.0),
    ]
    each = tuple(SeedResult(seed, Path("report.html"), runs, tuple(told)) for seed in range(seeds))
    return DemoResult(61.2, fast, each)


def shown(columns: int, made: DemoResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(command, "_columns", lambda: columns)
    command._print(made)
    return capsys.readouterr().out


def test_a_wide_terminal_gets_one_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(120, result(), monkeypatch, capsys)
    header = next(line for line in text.splitlines() if "grad_diff" in line)
    assert header.split() == list(NAMES)
    row = next(line for line in text.splitlines() if line.startswith("forget: extraction strength"))
    assert row.split()[-5:] == ["0.012"] * 5
    assert "1e-09" in text
    assert "refused: -6.00 > -9.00" in text
    assert "answered: -12.00 <= -9.00" in text
    assert "trained by an earlier demo and reused: start" in text
    assert "no attack was run" in text
    assert text.rstrip().endswith("report: report.html")


def test_forty_columns_are_enough(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(40, result(seeds=3), monkeypatch, capsys)
    assert "grad_diff" in text
    tables = text[text.index("\nstart\n") :].split("\n\n")[0]
    assert max(map(len, tables.splitlines())) <= 60
    story = text[: text.index("\nstart\n")]
    assert max(map(len, story.splitlines())) <= 48


def test_several_seeds_show_their_spread(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "0.012 [0.012, 0.012]" in shown(200, result(seeds=3), monkeypatch, capsys)


def test_fast_says_that_thresholds_do_not_apply(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "do not apply" in shown(120, result(fast=True), monkeypatch, capsys)


def test_a_character_the_terminal_lacks_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(written, encoding="latin-1", write_through=True))
    assert main(["validate", "→.yaml"]) == 2
    assert b"\\u2192.yaml" in written.getvalue()
