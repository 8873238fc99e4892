"""The bench's parts without training: its settings, its cells, its choice, its refusals, its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expunge.bench import run as bench_run
from expunge.bench.memory import PeakMemory
from expunge.bench.plan import CELL, Cell, World, bench_size
from expunge.bench.result import COLUMNS, FORGET, RETAIN, Base, BenchResult, MethodResult, Outcome, choose
from expunge.bench.run import bench_methods
from expunge.bench.settings import COMMON, DECLARED, TRIALS, chosen_methods, read_settings, tuning_of, words
from expunge.bench.worker import _own_cache
from expunge.catalog import METHODS
from expunge.cli import bench as command
from expunge.cli.main import main
from expunge.config.load import load_recipe
from expunge.demo.plan import Plan
from expunge.errors import UsageError
from expunge.methods.select import select_method
from expunge.runs.cache import cache_root


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(Plan(7, bench_size(12), tmp_path / "world-7"), "digest")


def test_the_plan_is_the_catalogue() -> None:
    builtin = {entry.name for entry in METHODS if entry.target.startswith("expunge.")}
    assert set(DECLARED) == builtin, "every method that is listed runs in the bench, with settings of its own"


@pytest.mark.parametrize("name", METHODS.names())
def test_every_setting_is_a_recipe_of_its_method(name: str, world: World) -> None:
    settings = tuning_of(name, {}).settings(TRIALS)
    assert len(settings) == TRIALS
    assert len({json.dumps(setting, sort_keys=True) for setting in settings}) == TRIALS
    for setting in settings:
        assert "train.learning_rate" in setting
        recipe = load_recipe(world.cell(name, setting, 1).recipe).recipe
        method = select_method(recipe)
        assert method.name == name
        assert recipe.train.num_train_epochs == setting.get(
            "train.num_train_epochs", COMMON["train.num_train_epochs"]
        ), "the same passes over the forget set for all"


def test_a_method_of_another_package_gets_four_rates() -> None:
    settings = tuning_of("theirs", {}).settings(TRIALS)
    assert [set(setting) for setting in settings] == [{"train.learning_rate"}] * TRIALS


def test_a_cell_knows_what_decides_it(world: World) -> None:
    cells = [
        world.cell("npo", {"train.learning_rate": 1e-3}, 1),
        world.cell("npo", {"train.learning_rate": 2e-3}, 1),
        world.cell("wga", {"train.learning_rate": 1e-3}, 1),
        World(world.base, "other").cell("npo", {"train.learning_rate": 1e-3}, 1),
    ]
    assert len({cell.key for cell in cells}) == 4
    assert world.cell("npo", {"train.learning_rate": 1e-3}).key == cells[0].key, "the chosen one is the same recipe"
    assert (cells[0].name, world.cell("npo", {}).name) == ("7/npo-1", "7/npo")
    assert cells[0].job().may_fail


def test_only_a_cell_done_like_this_is_finished(world: World) -> None:
    cell = world.cell("npo", {"train.learning_rate": 1e-3}, 1)
    assert cell.finished() is None
    cell.path.mkdir(parents=True)
    for text, finished in (
        ("not json", False),
        ('{"key": "other"}', False),
        (json.dumps({"key": cell.key, "seconds": 1.0}), True),
    ):
        (cell.path / CELL).write_text(text)
        assert (cell.finished() is not None) == finished


def outcome(cell: Cell, forget: float, retain: float) -> Outcome:
    metrics = {FORGET: {"value": forget}, RETAIN: {"value": retain}}
    return Outcome(cell, {"key": cell.key, "seconds": 9.0, "peak_memory_mb": 60.0, "metrics": metrics, "skipped": {}})


def test_the_criterion_keeps_all_and_forgets_no_more_than_retraining(world: World) -> None:
    cell = world.cell("npo", {}, 1)
    over, right, under = (outcome(cell, *pair).closeness(0.05) for pair in ((0.0, 0.9), (0.05, 0.9), (0.5, 0.98)))
    assert right > over > under
    assert choose([over, None, right, right]) == 2, "the first of equals"
    assert choose([None, None]) is None


@pytest.fixture
def result(world: World) -> BenchResult:
    cell = world.cell("npo", {"train.learning_rate": 1e-3, "method.beta": 0.1}, 1)
    broken = Outcome(cell, None, "Traceback\n  ...\nValueError: no such thing", None)
    other = world.cell("npo", {"train.learning_rate": 1e-3, "method.beta": 0.3}, 1)
    broken_other = broken._replace(cell=other)
    good, base = outcome(cell, 0.04, 0.98), Base("start", (Path("s"),), ({FORGET: {"value": 1.0}},))
    return BenchResult(
        12.0,
        12,
        7,
        (8,),
        2,
        (base,),
        (
            MethodResult("npo", (broken_other, good), (None, 0.97), 1, (good,)),
            MethodResult("wga", (broken, broken), (None, None), None, ()),
        ),
    )


def test_what_failed_is_in_the_table_and_below_it(result: BenchResult, capsys: pytest.CaptureFixture[str]) -> None:
    command._print(result)
    out = capsys.readouterr().out
    rows = {line.split()[0]: line for line in out.splitlines() if line}
    assert "lr 0.001, beta 0.1 (1 failed)" in rows["npo"]
    assert rows["wga"].split()[1:] == ["failed", *["-"] * len(COLUMNS)]
    assert out.count("ValueError: no such thing") == 3
    assert "tries the failed cells again" in out


def test_json_keeps_the_whole_error(result: BenchResult) -> None:
    found = json.loads(json.dumps(result.to_json()))
    assert found["methods"][0]["trials"][0]["error"].startswith("Traceback")
    assert found["methods"][1]["values"][FORGET] is None
    assert [failure["cell"] for failure in found["failed"]] == ["7/npo-1"] * 3


def test_several_worlds_show_their_spread() -> None:
    shown = command._cell(FORGET, {"value": 0.04, "low": 0.03, "high": 0.05, "values": [0.03, 0.05]})
    assert shown == "0.040 [0.030, 0.050]"
    assert command._cell("forget_quality", {"value": 1e-9, "low": 0, "high": 0, "values": [1e-9]}) == "1e-09"
    assert command._cell("seconds", None) == "-"


def test_settings_in_words() -> None:
    assert words(
        {
            "train.learning_rate": 2e-3,
            "method.beta": 0.1,
            "method.retain": "kl",
            "wrappers": ["gru", {"name": "wagle", "ratio": 0.9}],
        }
    ) == ("lr 0.002, beta 0.1, retain kl, wrappers gru + wagle ratio 0.9")
    assert words({"method.base": {"name": "npo", "beta": 0.1}}) == "base npo beta 0.1"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--methods", "npoo"], ["unknown method 'npoo'", "npo"]),
        (["--methods", " , "], ["no method given", "known"]),
        (["--trials", "0"], ["--trials", "equal to 1"]),
        (["--trials", "5"], ["--trials", "4"]),
        (["--seeds", "0"], ["--seeds"]),
        (["--people", "3"], ["--people"]),
        (["--jobs", "0"], ["--jobs"]),
        (["--settings", "missing.yaml"], ["missing.yaml", "YAML"]),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_made(
    options: list[str],
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "bench"
    assert main(["bench", "methods", "--out", str(out), *options]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert "hint: " in said
    assert not out.exists()


def test_python_is_refused_alike(tmp_path: Path) -> None:
    for numbers in ({"trials": 0}, {"trials": 5}, {"seeds": 0}, {"jobs": 0}):
        with pytest.raises(UsageError, match=next(iter(numbers))):
            bench_methods(out=tmp_path / "bench", **numbers)


def test_folders_that_are_not_a_bench_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file"):
        bench_methods(methods="npo", out=tmp_path / "file/bench")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("")
    with pytest.raises(UsageError, match="not empty and no bench lies there"):
        bench_methods(methods="npo", out=mine)
    (mine / "bench.json").write_text("{}")
    with pytest.raises(UsageError, match="not what a bench writes"):
        bench_methods(methods="npo", out=mine)
    settings: dict[str, Any] = {"version": bench_run.__version__, "people": 24, "seeds": [200]}
    (mine / "bench.json").write_text(json.dumps({"settings": settings}))
    with pytest.raises(UsageError, match="people 24, not 12"):
        bench_methods(methods="npo", out=mine)
    assert sorted(path.name for path in mine.iterdir()) == ["bench.json", "thesis.txt"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", "not a mapping"),
        ("npo: 3", "not a list"),
        ("npo: [{train.learning_rate: 1e-3}]", "1 settings"),
        ("npoo: []", "npoo"),
        ("npo: [{lr: 1}, {lr: 2}, {lr: 3}, {lr: 4}]", "'lr' is not a recipe key"),
    ],
)
def test_settings_of_another_shape_are_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(UsageError, match=words):
        read_settings(tmp_path / "own.yaml")


def test_own_settings_replace_the_declared_ones(tmp_path: Path) -> None:
    rates = (1e-4, 2e-4, 3e-4, 4e-4)
    (tmp_path / "own.yaml").write_text(
        f"grad-diff: [{', '.join(f'{{train.learning_rate: {rate}}}' for rate in rates)}]"
    )
    own = read_settings(tmp_path / "own.yaml")
    assert [setting["train.learning_rate"] for setting in tuning_of("grad_diff", own).settings(2)] == [1e-4, 2e-4]
    assert tuning_of("npo", own) == DECLARED["npo"]


def test_methods_are_named_once_in_either_spelling() -> None:
    assert chosen_methods("npo, grad-diff,npo") == ["npo", "grad_diff"]
    assert chosen_methods(None) == METHODS.names()


def test_a_cell_has_a_cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path))
    with _own_cache():
        within = cache_root()
        assert within != tmp_path
    assert cache_root() == tmp_path
    assert not within.exists()


def test_peak_memory_is_what_was_added() -> None:
    import torch

    memory = PeakMemory(torch.device("cpu"))
    held = torch.ones(10_000_000)
    del held
    assert 35 < memory.mb() < 60
