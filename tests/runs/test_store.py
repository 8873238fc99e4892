"""A kill or a full disk at any moment leaves something readable."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.errors import DataError, StoppedError, UsageError
from expunge.runs import store
from expunge.runs.store import (
    append_event,
    atomic_file,
    atomic_write_json,
    atomic_write_text,
    read_events,
    stops_when_full,
)


def full_disk(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_write_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    atomic_write_json(path, {"a": 1})
    atomic_write_json(path, {"a": "ä"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "ä"}
    assert [item.name for item in path.parent.iterdir()] == ["a.json"]


def test_a_failed_block_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "table"
    atomic_write_text(path, "old")

    def write_half() -> None:
        with atomic_file(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["table"]


def test_a_full_disk_stops_the_run_and_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "manifest.json"
    atomic_write_text(path, "old")
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(StoppedError, match="no space left") as caught:
        atomic_write_text(path, "new")
    assert caught.value.hint is not None
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_other_errors_of_the_system_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="I/O error"), stops_when_full(tmp_path):
        raise OSError(errno.EIO, "I/O error")


def test_a_place_that_must_not_be_written_to_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        atomic_write_text(Path(__file__) / "x", "")
    with pytest.raises(UsageError, match="Read-only"), stops_when_full(tmp_path):
        raise OSError(errno.EROFS, "Read-only file system")


def test_a_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        atomic_write_json(tmp_path / "a", {"value": float("nan")})
    with pytest.raises(ValueError):
        append_event(tmp_path / "b", {"loss": float("inf")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_an_event_that_does_not_fit_on_the_disk() -> None:
    with pytest.raises(StoppedError):
        append_event(Path("/dev/full"), {"event": "step", "step": 1})


def test_no_events_yet(tmp_path: Path) -> None:
    assert read_events(tmp_path / "events.jsonl") == []


def test_a_line_cut_by_a_kill_is_lost_alone(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    append_event(path, {"event": "step", "step": 1})
    with path.open("a") as file:
        file.write('{"event": "step", "st')
    append_event(path, {"event": "step", "step": 2})
    assert [event["step"] for event in read_events(path)] == [1, 2]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "a"}\nrubbish}\n')
    with pytest.raises(DataError, match="line 2"):
        read_events(path)


def test_resuming_takes_back_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for step in (1, 2, 3):
        append_event(path, {"event": "step", "step": step, "try": 1})
    append_event(path, {"event": "resumed", "step": 1})
    append_event(path, {"event": "step", "step": 2, "try": 2})
    steps = [(event["step"], event["try"]) for event in read_events(path) if event["event"] == "step"]
    assert steps == [(1, 1), (2, 2)]


@settings(derandomize=True, deadline=None, max_examples=50)
@given(kills=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=5))
def test_a_run_killed_and_resumed_reads_like_one_that_was_not(
    kills: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("run") / "events.jsonl"
    done = 0
    for reached, back in kills:
        for step in range(done + 1, max(done, reached) + 1):
            append_event(path, {"event": "step", "step": step, "loss": step / 2})
        done = min(back, max(done, reached))
        append_event(path, {"event": "resumed", "step": done})
    for step in range(done + 1, 10):
        append_event(path, {"event": "step", "step": step, "loss": step / 2})
    steps = [event for event in read_events(path) if event["event"] == "step"]
    assert steps == [{"event": "step", "step": step, "loss": step / 2} for step in range(1, 10)]


def test_folders_are_synced_where_the_system_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(store.os, "fsync", synced.append)
    atomic_write_text(tmp_path / "a", "x")
    assert len(synced) == 2
