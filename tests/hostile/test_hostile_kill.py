"""Interrupted, terminated and killed at every delicate moment: the same command finishes the same run, bit for bit."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_process import Fault, Processes
from hostile_result import INTERRUPTED, USAGE, Invoke, assert_refused, assert_same_run, manifest
from hostile_world import World

APPEND = "expunge.runs.run.append_event"
RENAME = "pathlib.Path.replace"
SYNC = "os.fsync"


def assert_resumes(world: World, invoke: Invoke, uninterrupted: Path) -> None:
    """The same command finishes the run; in this process, which is as good as another and faster."""
    result = invoke("unlearn", world.recipe())
    assert result.code == 0, result
    assert manifest(world.run)["status"] == "finished"
    assert not [path.name for path in world.run.rglob("*") if path.name.startswith(".")], "nothing half is left"
    assert_same_run(world.run, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_stop(
    world: World, processes: Processes, invoke: Invoke, uninterrupted: Path, number: int
) -> None:
    result = processes("unlearn", world.recipe(), fault=Fault(at=APPEND, call=6, signal=number))
    assert result.code == INTERRUPTED
    assert result.err.endswith("interrupted\nhint: the same command resumes this run\n")
    assert "Traceback" not in result.err
    found = manifest(world.run)
    assert (found["status"], found["stop_reason"]) == ("stopped", "interrupted")
    assert [path.name for path in world.run.glob("checkpoints/*")] == [f"step-{found['steps']:06d}"]
    assert_resumes(world, invoke, uninterrupted)


def test_ctrl_c_before_the_first_step(world: World, processes: Processes, invoke: Invoke, uninterrupted: Path) -> None:
    loading = Fault(at="expunge.train.start.load_model", signal=signal.SIGINT)
    assert processes("unlearn", world.recipe(), fault=loading).code == INTERRUPTED
    assert not world.run.exists()
    tables = Fault(at="expunge.models.reference_build.score", signal=signal.SIGINT)
    assert processes("unlearn", world.recipe(), fault=tables).code == INTERRUPTED
    assert_resumes(world, invoke, uninterrupted)


@pytest.mark.parametrize(
    ("at", "call"),
    [
        (RENAME, 1),
        (RENAME, 7),
        (SYNC, 3),
        (SYNC, 13),
        (SYNC, 22),
    ],
)
def test_killed(world: World, processes: Processes, invoke: Invoke, uninterrupted: Path, at: str, call: int) -> None:
    result = processes("unlearn", world.recipe(), fault=Fault(at=at, call=call))
    assert result.code == -signal.SIGKILL
    if (world.run / "manifest.json").exists():
        assert manifest(world.run)["status"] == "running"
    assert_resumes(world, invoke, uninterrupted)


@pytest.mark.slow
def test_the_command_itself_and_a_second_one_beside_it(world: World, invoke: Invoke) -> None:
    recipe = world.recipe(train__max_steps=1_000_000, train__save_steps=1_000_000)
    source = Path(__file__).parents[2] / "src"
    env = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "expunge.cli.main", "unlearn", str(recipe)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stderr is not None
        said = list(itertools.takewhile(lambda line: not line.startswith("step 1/"), process.stderr))
        assert process.poll() is None, said
        second = invoke("unlearn", recipe)
        purged = invoke("purge", world.run)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert_refused(second, USAGE, f"another process is working in {world.run}", "wait")
    assert_refused(purged, USAGE, "is running", "stop it first")
    assert (process.returncode, out) == (INTERRUPTED, "")
    assert err.endswith("interrupted\nhint: the same command resumes this run\n")
    found = manifest(world.run)
    assert found["status"] == "stopped"
    assert [path.name for path in world.run.iterdir() if path.name.startswith(".")] == []
    assert [path.name for path in world.run.glob("checkpoints/*")] == [f"step-{found['steps']:06d}"]
