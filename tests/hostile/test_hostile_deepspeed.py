"""DeepSpeed's ZeRO-3 in two processes: the weights of one process, and a killed run that goes on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from hostile_process import Ended, Fault, Processes
from hostile_team import Member, team
from hostile_world import World
from test_hostile_processes import STEP, distance

pytest.importorskip("deepspeed", reason='needs pip install "expunge[deepspeed]"')
pytestmark = pytest.mark.slow

SETTINGS = Path(__file__).parents[2] / "launch" / "zero3.json"
SWITCHED_ON = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(SETTINGS)}
QUIET = "hostile_team.without_compiling"


def divided(
    world: World, processes: Processes, recipe: Path, *, count: int = 2, fault: Fault | None = None
) -> list[Ended]:
    members = [Member(world.folder, before=[QUIET]) for _ in range(count)]
    if fault is not None:
        members[-1] = members[-1]._replace(fault=fault)
    return team(processes.server, members, "unlearn", recipe, environment=SWITCHED_ON)


def test_a_killed_run_ends_like_one_process(world: World, processes: Processes, uninterrupted: Path) -> None:
    # One row a micro-batch: gradients add up over several of them before a step.
    recipe = world.recipe(train__token_budget=64)
    left, killed = divided(world, processes, recipe, fault=Fault(at=STEP, call=5))
    assert (left.code, killed.code) == (4, -signal.SIGKILL), left.err
    assert "another process of this run has ended" in left.err

    alone = processes("unlearn", recipe)
    assert alone.code == 2
    assert "was written with DeepSpeed, and this run goes on without it" in alone.err

    three = divided(world, processes, recipe, count=3)
    assert {each.code for each in three} == {2}
    assert "was written by 2 processes under DeepSpeed, and these are 3" in three[0].err

    again = divided(world, processes, recipe)
    assert [each.code for each in again] == [0, 0], again
    assert "resumed from step 3" in again[0].err
    assert again[0].out == f"{world.run}\n"
    assert distance(uninterrupted, world.run) < 1e-4


def test_a_method_that_freezes_weights_and_reads_states(world: World, processes: Processes) -> None:
    recipe = world.recipe(method={"name": "rmu", "layer": 1}, train__token_budget=64)
    together = divided(world, processes, recipe)
    assert [each.code for each in together] == [0, 0], together
    alone = processes("unlearn", recipe, f"output_dir={world / 'alone'}")
    assert alone.code == 0, alone.err
    assert distance(world / "alone", world.run) < 1e-4


def test_a_loss_that_is_no_number_is_not_applied(world: World, processes: Processes) -> None:
    members = [Member(world.folder, before=[QUIET]), Member(world.folder, before=[QUIET, "hostile_team.spoil_a_loss"])]
    recipe = world.recipe(train__token_budget=64, train__save_steps=1)
    ended = team(processes.server, members, "unlearn", recipe, environment=SWITCHED_ON)
    assert [each.code for each in ended] == [4, 4], ended
    assert (world / "spoiled").read_text() in ended[0].err
    assert [path.name for path in (world.run / "checkpoints").iterdir()] == ["step-000002"]
