"""Two processes of one run, of which one is killed, interrupted, misled or spoiled: both end, and the run goes on."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from hostile_process import Ended, Fault, Processes
from hostile_team import Member, team
from hostile_world import World, rows, write_jsonl
from safetensors.torch import load_file

STEP = "expunge.train.engine.Engine.train_step"


def distance(ours: Path, theirs: Path) -> float:
    """The largest relative difference of two models' tensors."""
    a, b = (load_file(run / "model" / "model.safetensors") for run in (ours, theirs))
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).norm() / a[name].double().norm()) for name in a)


def both(world: World, processes: Processes, *argv: str | Path, fault: Fault | None = None) -> list[Ended]:
    """A command line in two processes, of which the second one has a fault."""
    other = Member(world.folder) if fault is None else Member(world.folder, fault)
    return team(processes.server, [Member(world.folder), other], *argv)


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True], ids=["copied", "divided"])
def test_one_of_two_is_killed(world: World, processes: Processes, uninterrupted: Path, fsdp: bool) -> None:
    recipe = world.recipe(train__fsdp=fsdp)
    left, killed = both(world, processes, "unlearn", recipe, fault=Fault(at=STEP, call=5))
    assert (left.code, killed.code) == (4, -signal.SIGKILL), left.err
    assert left.err.count("error:") == 1
    assert "another process of this run has ended" in left.err
    assert "the same command resumes" in left.err

    again = both(world, processes, "unlearn", recipe)
    assert [each.code for each in again] == [0, 0], again
    assert "resumed from step 3" in again[0].err
    assert [each.out for each in again] == [f"{world.run}\n", ""]
    assert distance(uninterrupted, world.run) < 1e-5


@pytest.mark.slow
def test_ctrl_c_reaches_one_of_two(world: World, processes: Processes, uninterrupted: Path) -> None:
    recipe = world.recipe()
    stopped = both(world, processes, "unlearn", recipe, fault=Fault(at=STEP, call=4, signal=signal.SIGINT))
    assert [each.code for each in stopped] == [130, 130], stopped
    assert [path.name for path in (world.run / "checkpoints").iterdir()] == ["step-000004"]
    again = both(world, processes, "unlearn", recipe)
    assert [each.code for each in again] == [0, 0], again
    assert "resumed from step 4" in again[0].err
    assert distance(uninterrupted, world.run) < 1e-5


@pytest.mark.slow
def test_two_that_read_other_rows(world: World, processes: Processes) -> None:
    recipe = world.recipe(data__forget="forget.jsonl")
    elsewhere = world / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(world / "model", elsewhere / "model")
    write_jsonl(elsewhere / "forget.jsonl", rows("forget", 11))
    ended = team(processes.server, [Member(world.folder), Member(elsewhere)], "unlearn", recipe)
    assert [each.code for each in ended] == [3, 3], ended
    for each in ended:
        assert each.err.count("error:") == 1
        assert "the processes disagree on the forget rows: process 1 of 2" in each.err
        assert "compare them, or keep them in one shared folder" in each.err


@pytest.mark.slow
def test_one_of_two_has_a_loss_that_is_no_number(world: World, processes: Processes) -> None:
    members = [Member(world.folder), Member(world.folder, before=["hostile_team.spoil_a_loss"])]
    ended = team(processes.server, members, "unlearn", world.recipe(train__token_budget=64))
    assert [each.code for each in ended] == [4, 4], ended
    guilty = (world / "spoiled").read_text()
    for each in ended:
        assert each.err.count("error:") == 1
        assert "error: step 3: loss is nan" in each.err
        assert f"(rows: {guilty})" in each.err
