"""What a command line came to, and what every refusal has in common."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from expunge.runs.store import read_events
from expunge.train.monitor import VOLATILE

USAGE, DATA, STOPPED, MET, INTERRUPTED = 2, 3, 4, 5, 130


class Result(NamedTuple):
    """Exit code and output."""

    code: int
    out: str
    err: str


Invoke = Callable[..., Result]
"""Runs a command line."""


def assert_refused(result: Result, code: int, *words: str) -> None:
    """The documented exit code, what was found, one hint, no traceback, and nothing on stdout.

    Args:
        result: of the command.
        code: the exit code.
        words: regular expressions that the message and its hint match, in this order.
    """
    assert "Traceback" not in result.err, result.err
    assert result.code == code, result
    assert result.out == ""
    lines = result.err.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith("error: ")), None)
    assert start is not None, result.err
    told = "\n".join(lines[start:])
    assert told.count("\nhint: ") == 1, told
    assert re.search(".*".join(words), told, re.DOTALL), f"{words} not in order in: {told}"


def manifest(run: Path) -> dict[str, Any]:
    """A run's manifest as plain JSON."""
    found: dict[str, Any] = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    return found


def steps(run: Path) -> list[dict[str, Any]]:
    """The step events of a run, without the fields that may differ between two runs."""
    events = [event for event in read_events(run / "events.jsonl") if event.get("event") == "step"]
    return [{key: value for key, value in event.items() if key not in VOLATILE} for event in events]


def assert_same_run(run: Path, other: Path) -> None:
    """Weights equal byte for byte, and every deterministic field of every step."""
    assert steps(run) == steps(other)
    weights = [folder / "model" / "model.safetensors" for folder in (run, other)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
