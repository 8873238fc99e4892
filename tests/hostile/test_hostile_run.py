"""What lies in the output directory, and what became of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_result import DATA, INTERRUPTED, USAGE, Invoke, assert_refused, assert_same_run, manifest
from hostile_world import World, rows, write_jsonl

from expunge.errors import StoppedError
from expunge.train.engine import Engine


@pytest.fixture
def interrupted(world: World, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipe of a run that was interrupted after five of its eight steps, with a checkpoint at three."""
    recipe = world.recipe()
    step = Engine.train_step

    def until_five(engine: Engine, *args: object) -> object:
        if engine.step == 5:
            raise KeyboardInterrupt
        return step(engine, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "train_step", until_five)
        assert invoke("unlearn", recipe).code == INTERRUPTED
    return recipe


def test_the_same_settings_resume(world: World, invoke: Invoke, interrupted: Path, uninterrupted: Path) -> None:
    found = manifest(world.run)
    assert (found["status"], found["stop_reason"], found["steps"]) == ("stopped", "interrupted", 5)
    result = invoke("unlearn", interrupted)
    assert (result.code, result.out) == (0, f"{world.run}\n")
    assert "holds this run unfinished: resuming it" in result.err
    assert "resumed from step 3" in result.err
    assert_same_run(world.run, uninterrupted)


def test_a_finished_run_is_kept_and_replaced_only_by_one_that_can_start(world: World, invoke: Invoke) -> None:
    recipe = world.recipe()
    assert invoke("unlearn", recipe).code == 0
    weights = (world.run / "model" / "model.safetensors").read_bytes()
    assert_refused(invoke("unlearn", recipe), USAGE, "holds a finished run with these settings", "--overwrite")
    assert_refused(invoke("unlearn", recipe, "seed=3"), USAGE, "a finished run with other settings: seed: 0 -> 3")
    result = invoke("unlearn", recipe, "data.forget=nowhere.jsonl", "--overwrite")
    assert_refused(result, DATA, r"no such file: nowhere\.jsonl")
    assert (world.run / "model" / "model.safetensors").read_bytes() == weights
    (world.run / "notes.txt").write_text("mine")
    assert invoke("unlearn", recipe, "seed=3", "--overwrite").code == 0
    assert (world.run / "model" / "model.safetensors").read_bytes() != weights
    assert (world.run / "notes.txt").read_text() == "mine"


def test_other_settings_are_listed(invoke: Invoke, interrupted: Path) -> None:
    result = invoke("unlearn", interrupted, "train.learning_rate=0.5", "method.beta=0.3")
    keys = r"an unfinished run with other settings: method\.beta: 0\.1 -> 0\.3; train\.learning_rate: 0\.001 -> 0\.5"
    assert_refused(result, USAGE, keys, "--overwrite")


@pytest.mark.parametrize("what", ["rows", "weights", "template"])
def test_a_run_is_not_continued_with_something_else(world: World, invoke: Invoke, interrupted: Path, what: str) -> None:
    if what == "rows":
        write_jsonl(world / "forget.jsonl", rows("forget", 12)[::-1])
    elif what == "weights":
        from expunge.testing.tiny import tiny_llama

        tiny_llama(384, seed=5).save_pretrained(world / "model")
    else:
        path = world / "model" / "chat_template.jinja"
        path.write_text(path.read_text().replace("<|end|>", "\n<|end|>"))
    assert_refused(invoke("unlearn", interrupted), USAGE, f"unfinished and .*{what}.* changed", "--overwrite")
    assert invoke("unlearn", interrupted, "--overwrite").code == 0


def test_a_foreign_folder_is_left_alone(world: World, invoke: Invoke) -> None:
    world.run.mkdir()
    (world.run / "thesis.tex").write_text("mine")
    for options in ((), ("--overwrite",)):
        assert_refused(invoke("unlearn", world.recipe(), *options), USAGE, "not empty and is not a run", "output_dir")
    assert [path.name for path in world.run.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_a_file_is_no_place_for_a_run(world: World, invoke: Invoke, place: str) -> None:
    (world / "file").write_text("mine")
    assert_refused(invoke("unlearn", world.recipe(output_dir=str(world / place))), USAGE, "file", "output_dir")
    assert (world / "file").read_text() == "mine"


def read_only(patch: pytest.MonkeyPatch, refused: Path) -> None:
    """Folders that cannot be made (the tests may run as root, whom no mode keeps out)."""
    make = Path.mkdir

    def mkdir(path: Path, *args: object, **kwargs: object) -> None:
        if path.is_relative_to(refused):
            raise OSError(30, "Read-only file system")
        make(path, *args, **kwargs)  # type: ignore[arg-type]

    patch.setattr(Path, "mkdir", mkdir)


def test_a_read_only_place(world: World, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    read_only(monkeypatch, world.run)
    result = invoke("unlearn", world.recipe())
    assert_refused(result, USAGE, f"{world.run}.* cannot be written: Read-only", "output_dir")


def damaged(path: Path, size: int = 500) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: damaged(folder / "state.pt"),
        lambda folder: (folder / "state.pt").write_bytes(b"hello"),
        lambda folder: (folder / "state.pt").unlink(),
        lambda folder: damaged(folder / "model.safetensors"),
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
    ],
)
def test_a_damaged_checkpoint_is_named(
    world: World, invoke: Invoke, interrupted: Path, uninterrupted: Path, damage: Callable[[Path], None]
) -> None:
    folder = world.run / "checkpoints" / "step-000003"
    damage(folder)
    result = invoke("unlearn", interrupted)
    assert_refused(result, DATA, f"the checkpoint {folder} cannot be read", "delete that folder", "from the start")
    shutil.rmtree(folder)
    assert invoke("unlearn", interrupted).code == 0
    assert_same_run(world.run, uninterrupted)


def test_what_is_no_checkpoint_is_not_taken_for_one(world: World, invoke: Invoke, interrupted: Path) -> None:
    (world.run / "checkpoints" / "step-last").mkdir()
    assert "resumed from step 3" in invoke("unlearn", interrupted).err


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"[]", b'{"schema": 1}'])
def test_a_damaged_manifest_is_named(world: World, invoke: Invoke, interrupted: Path, content: bytes) -> None:
    (world.run / "manifest.json").write_bytes(content)
    for command in (["unlearn", interrupted], ["unlearn", interrupted, "--overwrite"], ["eval", world.run]):
        assert_refused(invoke(*command), DATA, r"manifest\.json", "delete|name another")


def test_an_unfinished_run_has_nothing_to_evaluate(world: World, invoke: Invoke, interrupted: Path) -> None:
    assert_refused(invoke("eval", world.run), USAGE, "is stopped and has no model yet", "it resumes")


def test_a_lock_that_a_killed_process_left_is_no_obstacle(world: World, invoke: Invoke, interrupted: Path) -> None:
    (world.run / ".lock").touch()
    assert invoke("unlearn", interrupted).code == 0


def test_a_reason_without_words_is_kept(world: World, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise StoppedError("")

    monkeypatch.setattr(Engine, "train_step", fail)
    assert invoke("unlearn", world.recipe()).code == 4
    assert manifest(world.run)["stop_reason"] == "StoppedError: "
