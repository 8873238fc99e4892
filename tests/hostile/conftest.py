"""A world per test, and the command line inside this process or in one that can be killed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hostile_process import Processes, start_server
from hostile_result import Invoke, Result
from hostile_world import World, write_world

from expunge.cli.main import main


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model, tokenizer and rows; copied by every test."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    return folder


@pytest.fixture
def world(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A copy of the world; the cache and the current directory lie in it."""
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return World.copy(original, tmp_path)


@pytest.fixture
def invoke(capsys: pytest.CaptureFixture[str]) -> Invoke:
    """Run a command line in this process."""

    def run(*argv: str | Path) -> Result:
        capsys.readouterr()
        code = main([str(arg) for arg in argv])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def evaluated(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world with two finished, evaluated runs of different seeds: `run` and `retrained`."""
    folder = tmp_path_factory.mktemp("evaluated")
    world = World.copy(original, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPUNGE_CACHE", str(folder / "cache"))
        for name, seed in (("run", 0), ("retrained", 1)):
            recipe = world.recipe(f"{name}.yaml", eval__limit=3, train__max_steps=2, seed=seed)
            assert main(["unlearn", str(recipe), f"output_dir={folder / name}"]) == 0
            assert main(["eval", str(folder / name)]) == 0
    return folder


@pytest.fixture
def measured(evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the evaluated world, as the current directory."""
    shutil.copytree(evaluated, tmp_path / "w")
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "w")
    return tmp_path / "w"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever starts processes of its own goes with the slow tests."""
    for item in items:
        if "processes" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def processes(world: World, monkeypatch: pytest.MonkeyPatch) -> Processes:
    """Run command lines in processes of their own."""
    here, source = Path(__file__).parent, Path(__file__).parents[2] / "src"
    monkeypatch.setenv("PYTHONPATH", f"{source}:{here}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return Processes(start_server(), world.folder)


@pytest.fixture(scope="session")
def uninterrupted(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing befell: what every resumed run of `World.recipe()` must equal."""
    world = World.copy(original, tmp_path_factory.mktemp("uninterrupted"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPUNGE_CACHE", str(world / "cache"))
        assert main(["unlearn", str(world.recipe())]) == 0
    return world.run
