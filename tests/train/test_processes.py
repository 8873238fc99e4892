"""Two processes over gloo take the steps that one takes: with whole copies (DDP) and with a divided model (FSDP2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from layouts import Task, carry_out, in_processes

from expunge.catalog import METHODS

Result = dict[str, Any]

GRU = ({"name": "gru"},)
FEW = (
    Task("eua"),
    # Its rows travel with those of another dataset.
    Task("idk_dpo"),
    # Its reference is trained on 17 rows, of which one process has nothing in an epoch's last step.
    Task("forgetting_sft"),
    Task("npo", wrappers=GRU, divided=True),
    # Most of its parameters are frozen, and it ends its forward early where it may.
    Task("rmu", divided=True),
)
REST = (
    *(Task(name) for name in METHODS.names() if name not in {task.method for task in FEW if not task.divided}),
    # A mask that looks at whole tensors refuses a divided model.
    *(Task(name, divided=True) for name in METHODS.names() if name not in {"rmu", "alkn"}),
    *(
        Task("npo", wrappers=({"name": name},), divided=True)
        for name in ("sum", "gradient_surgery", "uno", "dual", "adaptive_retain", "gru_tau", "gru_prox", "energy")
    ),
    *(Task("npo", wrappers=({"name": name},)) for name in ("wagle", "alkn")),
    Task("npo", budget=4096),
    Task("npo", budget=4096, divided=True),
)


def both(tasks: tuple[Task, ...], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Result, Result]]:
    """Each task's result in one process and in two."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPUNGE_CACHE", str(cache))
        folder = tmp_path_factory.mktemp("one")
        ones = [carry_out(task._replace(divided=False), folder) for task in tasks]
    twos = in_processes(tasks, tmp_path_factory.mktemp("two"), cache=cache)
    return {label(task): pair for task, pair in zip(tasks, zip(ones, twos, strict=True), strict=True)}


def label(task: Task) -> str:
    around = "+".join(wrapper["name"] for wrapper in task.wrappers)
    return "-".join(filter(None, (task.method, around, "divided" * task.divided, str(task.budget))))


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Result, Result]]:
    return both(FEW, tmp_path_factory)


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Result, Result]]:
    return both(REST, tmp_path_factory)


@pytest.mark.slow
@pytest.mark.parametrize("task", FEW, ids=label)
def test_two_processes_equal_one(few: dict[str, tuple[Result, Result]], task: Task) -> None:
    assert_equal(*few[label(task)], divided=task.divided)


@pytest.mark.slow
@pytest.mark.parametrize("task", REST, ids=label)
def test_two_processes_equal_one_with_every_method(rest: dict[str, tuple[Result, Result]], task: Task) -> None:
    assert_equal(*rest[label(task)], divided=task.divided)


def assert_equal(one: Result, two: Result, *, divided: bool) -> None:
    assert (one["processes"], two["processes"]) == (1, 2)
    assert (one["divided"], two["divided"]) == (False, divided)
    for ours, theirs in zip(one["steps"], two["steps"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6)
    assert one["weights"] == pytest.approx(two["weights"], rel=1e-5)


@pytest.mark.slow
def test_a_checkpoint_of_any_layout_goes_on_in_any_other(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("EXPUNGE_CACHE", str(cache))
    plain = Task("eua", wrappers=GRU, settings={"steps": 4})
    whole = carry_out(plain, tmp_path)

    def kept(name: str, **changes: Any) -> Task:
        return plain._replace(checkpoints=str(tmp_path / name), **changes)

    carry_out(kept("one", stop_after=2), tmp_path)
    tasks = [
        kept("divided", divided=True, stop_after=2),
        kept("copied", stop_after=2),
        kept("one", divided=True),
        kept("copied", divided=True),
        kept("divided-again", divided=True, stop_after=2),
        kept("divided-again", divided=True),
    ]
    found = in_processes(tasks, tmp_path, cache=cache)
    ends = [*found[2:4], found[5], carry_out(kept("divided"), tmp_path)]
    assert [len(end["steps"]) for end in ends] == [2, 2, 2, 2]
    for end in ends:
        assert end["weights"] == pytest.approx(whole["weights"], rel=1e-6)
        for ours, theirs in zip(whole["steps"][2:], end["steps"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6)
