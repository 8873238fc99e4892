"""Methods and wrappers that carry something from step to step, killed several times in one run: the run is the same.

Same means bit for bit: weights, the optimizer's and every other state in the last checkpoint, and each step's event.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hostile_process import Fault, Processes
from hostile_result import Invoke, assert_same_run, manifest
from hostile_world import World

from expunge.cli.main import main

STEP = "expunge.runs.run.append_event"
TABLE = Fault(at="expunge.models.reference_build._Sink.write", call=5)
TABLE_END = Fault(at="expunge.runs.cache.Entry.finish")
MADE = Fault(at="expunge.train.provision.sync_files")
BEFORE_FOLDER = Fault(at="expunge.train.checkpoint._make")
BEFORE_WEIGHTS = Fault(at="expunge.train.checkpoint.save_file")
BEFORE_STATE = Fault(at="torch.save")
BEFORE_RENAME = Fault(at="expunge.train.checkpoint.sync_files")
BEFORE_PRUNING = Fault(at="expunge.train.checkpoint.Checkpoints._prune")
MODEL = Fault(at="expunge.models.save.sync_files")
CHECKPOINT = (BEFORE_FOLDER, BEFORE_WEIGHTS, BEFORE_STATE, BEFORE_RENAME, BEFORE_PRUNING)


class Case(NamedTuple):
    """A recipe with state, and where it is killed, one start after the other."""

    method: Mapping[str, Any]
    wrappers: Sequence[Any] = ()
    faults: tuple[Fault, ...] = ()
    train: Mapping[str, Any] = {}
    early: tuple[Fault, ...] = (TABLE, TABLE_END)
    """What is done before the first step."""

    def __str__(self) -> str:
        return "-".join([self.method["name"], *map(str, self.wrappers), *map(str, self.train.values())])

    def recipe(self, world: World) -> Path:
        changes = {f"train__{key}": value for key, value in self.train.items()}
        return world.recipe(
            method=dict(self.method),
            wrappers=list(self.wrappers),
            train__max_steps=7,
            train__save_steps=2,
            **changes,
        )


def step(call: int) -> Fault:
    """Before an event is written down."""
    return Fault(at=STEP, call=call)


NPO = {"name": "npo"}
BELIEFS = {"name": "bs_s", "base": NPO, "num_beliefs": 1, "max_new_tokens": 4, "resample": 1}
CASES = (
    Case({"name": "eua"}, faults=(TABLE, BEFORE_STATE, step(5)), train={"optim": "adamw"}),
    Case({"name": "eua"}, faults=(TABLE_END, BEFORE_PRUNING, MODEL), train={"optim": "muon"}),
    Case(NPO, ["gru"], faults=(step(4), BEFORE_RENAME, MODEL)),
    Case(NPO, ["dual"], faults=(BEFORE_WEIGHTS, step(6), BEFORE_PRUNING)),
    Case({"name": "bs_t"}, faults=(BEFORE_FOLDER, step(2), BEFORE_STATE), early=(step(1),)),
    Case(BELIEFS, faults=(MADE, step(6), MADE), early=(TABLE, TABLE_END, MADE)),
    Case({"name": "alkn"}, faults=(step(3), BEFORE_RENAME, MODEL)),
    Case(
        {"name": "rmu", "layer": 1},
        faults=(MADE, TABLE, BEFORE_STATE),
        train={"save_total_limit": 2},
        early=(TABLE, MADE),
    ),
)


@pytest.fixture(scope="module", params=CASES, ids=str)
def whole(
    request: pytest.FixtureRequest, original: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Case, Path]:
    """A case, and its run that nothing befell."""
    case: Case = request.param
    world = World.copy(original, tmp_path_factory.mktemp("whole"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPUNGE_CACHE", str(world / "cache"))
        assert main(["unlearn", str(case.recipe(world))]) == 0
    return case, world.run


def assert_finishes(world: World, invoke: Invoke, case: Case, run: Path) -> None:
    """The same command ends the run, as if nothing had happened."""
    result = invoke("unlearn", case.recipe(world))
    assert result.code == 0, result
    assert manifest(world.run)["status"] == "finished"
    kept = case.train.get("save_total_limit", 1)
    assert sorted(path.name for path in world.run.glob("checkpoints/*")) == [f"step-{n:06d}" for n in (6, 7)[-kept:]]
    assert not [path.name for path in world.run.rglob("*") if path.name.startswith(".")], "nothing half is left"
    assert_same_run(world.run, run)


def test_killed_again_and_again(whole: tuple[Case, Path], world: World, processes: Processes, invoke: Invoke) -> None:
    case, run = whole
    for fault in case.faults:
        result = processes("unlearn", case.recipe(world), fault=fault)
        assert result.code == -signal.SIGKILL, (fault, result.err)
    assert_finishes(world, invoke, case, run)


@pytest.mark.parametrize("seed", range(4))
def test_killed_anywhere(
    whole: tuple[Case, Path],
    world: World,
    processes: Processes,
    invoke: Invoke,
    record_property: Callable[[str, object], None],
    seed: int,
) -> None:
    case, run = whole
    rng, kills = random.Random(f"{case}-{seed}"), 0
    first = rng.choice(case.early)
    anywhere = [rng.choice([step(rng.randint(1, 6)), *CHECKPOINT, MODEL]) for _ in range(9)]
    for fault in (first, *anywhere):
        result = processes("unlearn", case.recipe(world), fault=fault)
        assert result.code in (0, -signal.SIGKILL), (fault, result.err)
        if result.code == 0:
            # It never came by where it was to be killed.
            break
        kills += 1
    record_property("kills", kills)
    if manifest(world.run)["status"] != "finished":
        assert_finishes(world, invoke, case, run)
    assert_same_run(world.run, run)
