"""What a command line came to, and what every refusal has in common."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from expunge.runs.run import checkpoint_paths
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
    """Weights and the state in the last checkpoint equal bit for bit, and every deterministic field of every step."""
    assert steps(run) == steps(other)
    weights = [folder / "model" / "model.safetensors" for folder in (run, other)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    ends = [checkpoint_paths(folder / "checkpoints") for folder in (run, other)]
    assert max(ends[0]) == max(ends[1])
    last = [end[max(end)] for end in ends]
    assert (last[0] / "model.safetensors").read_bytes() == (last[1] / "model.safetensors").read_bytes()
    assert_equal(*(torch.load(folder / "state.pt", weights_only=True) for folder in last), at="state")


def assert_equal(one: Any, two: Any, *, at: str) -> None:
    """Two nested states hold the same, tensors bit for bit."""
    assert type(one) is type(two), at
    if isinstance(one, Mapping):
        assert list(one) == list(two), at
        for key in one:
            assert_equal(one[key], two[key], at=f"{at}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), at
        for place, (left, right) in enumerate(zip(one, two, strict=True)):
            assert_equal(left, right, at=f"{at}[{place}]")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == two.dtype, at
        assert torch.equal(one, two), at
    else:
        assert one == two, at
