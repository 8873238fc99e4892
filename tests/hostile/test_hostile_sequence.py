"""A sequence of requests that is killed at its delicate moments: the same command finishes the same sequence."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from hostile_process import Fault, Processes
from hostile_result import Invoke, assert_same_run, manifest
from hostile_world import World

from expunge.cli.main import main


def recipe(world: World) -> Path:
    """Two requests by the method that hands something on."""
    return world.recipe(
        method={"name": "alkn"},
        train__max_steps=3,
        train__save_steps=1,
        data__forget=None,
        data__requests=[{"path": str(world / "forget.jsonl"), "rows": rows} for rows in ("0:6", "6:12")],
    )


@pytest.fixture(scope="module")
def whole(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sequence that nothing befell."""
    world = World.copy(original, tmp_path_factory.mktemp("whole"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPUNGE_CACHE", str(world / "cache"))
        assert main(["unlearn", str(recipe(world))]) == 0
    return world.run


@pytest.mark.parametrize(
    ("at", "call"),
    [
        ("expunge.evals.requests.extraction_strength", 2),
        ("expunge.runs.run.append_event", 9),
        ("expunge.train.runner.write_inheritance", 2),
        ("expunge.train.runner.save_model", 1),
        ("expunge.evals.requests.extraction_strength", 8),
        ("expunge.train.sequence._place", 1),
        ("os.link", 2),
        ("expunge.train.sequence.atomic_write_json", 4),
    ],
)
def test_killed(world: World, processes: Processes, invoke: Invoke, whole: Path, at: str, call: int) -> None:
    assert processes("unlearn", recipe(world), fault=Fault(at=at, call=call)).code == -signal.SIGKILL
    assert manifest(world.run)["status"] == "running"
    result = invoke("unlearn", recipe(world))
    assert result.code == 0, result
    assert result.out == f"{world.run}\n"
    assert manifest(world.run)["status"] == "finished"
    for name in ("request-1", "request-2"):
        assert_same_run(world.run / name, whole / name)
    ours, theirs = (json.loads((run / "requests.json").read_text()) for run in (world.run, whole))
    for key in ("stages", "resurfaced", "rows"):
        assert ours[key] == theirs[key], key
    last = world.run / "request-2/model/model.safetensors"
    assert (world.run / "model/model.safetensors").read_bytes() == last.read_bytes()
    assert not [path.name for path in world.run.rglob("*") if path.name.startswith(".")], "nothing half is left"
