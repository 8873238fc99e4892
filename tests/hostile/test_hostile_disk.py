"""Disks that are full at any moment: exit code 4, the last good state kept, and the same command finishes the run."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hostile_process import Fault, Processes
from hostile_result import STOPPED, Invoke, Result, assert_refused, assert_same_run, manifest
from hostile_world import World

FULL = OSError(errno.ENOSPC, "No space left on device")


def failing(function: Callable[..., Any], call: int, error: Exception = FULL) -> Callable[..., Any]:
    """The function, whose n-th call and all after it fail."""
    calls = itertools.count(1)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if next(calls) >= call:
            raise error
        return function(*args, **kwargs)

    return wrapped


def assert_stopped(result: Result) -> None:
    """Exit code 4, and a way on."""
    assert_refused(result, STOPPED, "(no space left|could not be written)", "free .*(run|repeat) the same command")


def assert_resumes(world: World, invoke: Invoke, uninterrupted: Path) -> None:
    assert invoke("unlearn", world.recipe()).code == 0
    assert_same_run(world.run, uninterrupted)


@pytest.mark.parametrize("call", [1, 5, 9, 13, 20, 27])
def test_nothing_more_can_be_synced(
    world: World, invoke: Invoke, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(os.fsync, call))
        assert_stopped(invoke("unlearn", world.recipe()))
    assert_resumes(world, invoke, uninterrupted)


def test_events(world: World, invoke: Invoke, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = Path.open, itertools.count(1)

    def opened(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == "events.jsonl" and args == ("ab",) and next(calls) > 5:
            raise FULL
        return real(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        assert_stopped(invoke("unlearn", world.recipe()))
    assert manifest(world.run)["status"] == "stopped"
    assert_resumes(world, invoke, uninterrupted)


def test_the_tokenizer_of_the_model(
    world: World, invoke: Invoke, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedTokenizerBase

    with monkeypatch.context() as patch:
        # What the tokenizers library raises is neither an OSError nor a RuntimeError.
        bare = Exception("No space left on device (os error 28)")
        patch.setattr(PreTrainedTokenizerBase, "save_pretrained", failing(lambda: None, 1, bare))
        result = invoke("unlearn", world.recipe())
    assert_refused(result, STOPPED, "the model could not be written to .*No space left", "only the saving is repeated")
    assert (manifest(world.run)["status"], manifest(world.run)["steps"]) == ("stopped", 8)
    assert not (world.run / "model").exists()
    assert_resumes(world, invoke, uninterrupted)


def test_a_checkpoint_larger_than_files_may_be(
    world: World, invoke: Invoke, processes: Processes, uninterrupted: Path
) -> None:
    result = processes("unlearn", world.recipe(), fault=Fault(file_size=250_000))
    assert_refused(Result(*result), STOPPED, "checkpoint of step 3 could not be written", "resumes from the start")
    assert manifest(world.run)["status"] == "stopped"
    assert list((world.run / "checkpoints").iterdir()) == []
    assert_resumes(world, invoke, uninterrupted)


@contextmanager
def disk(folder: Path, kilobytes: int) -> Iterator[None]:
    """A disk of its own for a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user cannot mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(("kilobytes", "kept"), [(8, []), (300, []), (760, ["step-000003"])])
def test_a_real_full_disk(world: World, processes: Processes, invoke: Invoke, kilobytes: int, kept: list[str]) -> None:
    with disk(world.run, kilobytes):
        recipe = world.recipe()
        assert_stopped(Result(*processes("unlearn", recipe)))
        assert [path.name for path in world.run.glob("checkpoints/*")] == kept
        # Trying again without more space loses nothing either.
        assert_stopped(invoke("unlearn", recipe))
        assert [path.name for path in world.run.glob("checkpoints/*")] == kept


@pytest.mark.parametrize("kilobytes", [4, 40])
def test_reference_tables_under_a_memory_map(
    world: World, processes: Processes, invoke: Invoke, kilobytes: int
) -> None:
    recipe = world.recipe(method={"name": "npo", "retain": "kl"})
    with disk(world / "cache", kilobytes):
        assert_stopped(Result(*processes("unlearn", recipe)))
        assert list((world / "cache").glob("*/.*")) == []
    assert invoke("unlearn", recipe).code == 0


def test_evaluation_tables(measured: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = next((measured / "run" / "evals").iterdir())
    folder = whole.with_name(f"{whole.name}-first-1")
    kept = (whole / "metrics.json").read_bytes()
    for call in (1, 2):
        with monkeypatch.context() as patch:
            patch.setattr(pq, "write_table", failing(pq.write_table, call))
            result = invoke("eval", "run", "--limit", "1", "--overwrite")
        assert_refused(result, STOPPED, r"writing .*(trace|generations)\.parquet", "same command")
        assert not (folder / "spec.json").exists(), "half an evaluation is none"
    assert (whole / "metrics.json").read_bytes() == kept
    shutil.rmtree(whole)
    assert_refused(invoke("metrics", "run"), 2, "no finished evaluation", "expunge eval")
    result = invoke("eval", "run", "--limit", "1")
    assert result.code == 0
    assert "reusing" not in result.err
